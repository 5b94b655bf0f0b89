from __future__ import annotations

import pytest
import torch
from reservoir_making import STREAMS, cross_entropy, follows
from stepping import until
from test_der import answering

from raycl.training.phase import train_one_epoch


def test_the_terms_by_hand():
    terms = answering("derpp", [1.0, 2.0], [0.0, 0.0])
    found = {name: value.item() for name, value in terms.items()}
    assert found == pytest.approx(
        {
            "cross_entropy": 1.3132617,  # log(1 + e)
            "logits": 0.25,  # 0.1 * (1 + 4) / 2
            "replay": 0.65663085,  # the stored image is of class 0, too
        }
    )
    assert answering("derpp", [1.0, 2.0], [0.0, 0.0], beta=1.0)["replay"].item() == pytest.approx(
        1.3132617
    )


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("memory_size", [12, 500])
def test_is_the_method_written_out(build, stream, memory_size):
    def loss(reference, x, y):
        z = reference.network(x)
        value = cross_entropy(z, y)
        if reference.memory:
            old = reference.draw()
            moved = reference.network(reference.images(old)) - torch.stack([i.logits for i in old])
            again = reference.draw()
            labels = torch.tensor([i.label for i in again])
            value = value + 0.1 * (moved**2).sum() / moved.numel()
            value = value + 0.5 * cross_entropy(reference.network(reference.images(again)), labels)
        return value, z

    run = build("derpp", memory_size=memory_size, benchmark=STREAMS[stream], train={"epochs": 2})
    follows(run, loss)


def test_three_passes_and_two_draws(build):
    run = build("derpp", memory_size=1000)
    sizes, drawn = [], []
    run.method.head.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    draw = run.method.reservoir.draw

    def spy(count, generator):
        drawn.append(draw(count, generator))
        return drawn[-1]

    run.method.reservoir.draw = spy
    task = until(run, 0)
    (phase,) = run.method.phases(task)
    train_one_epoch(phase, phase.optimizer(), run.method)
    assert sizes[:7] == [8, 8, 8, 8, 8, 8, 8]
    assert len(sizes) == 1 + 3 * ((len(drawn)) // 2)
    pairs = list(zip(drawn[2::2], drawn[3::2], strict=True))  # after two steps there is a choice
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_labels_add_what_der_lacks(build):
    """Trained on old labels, too, the cross-entropy on old images is lower."""
    losses = {}
    for beta in (0, 1):
        run = build("derpp", alpha=0, beta=beta, memory_size=40, train={"epochs": 4})
        while not run.done:
            run.advance()
        (batch,) = run.stream.data[0].test.batches(1000)
        losses[beta] = cross_entropy(run.method.logits(batch.images, None), batch.labels).item()
    assert losses[0] > 2 * losses[1]
