from __future__ import annotations

import pytest
import torch


def head(run):
    return torch.cat([run.method.head.weight, run.method.head.bias[:, None]], 1).detach().clone()


def changed_rows(run, epochs=1):
    """Rows of the head that the next task changes."""
    before = head(run)
    for _ in range(epochs):
        run.advance()
    return [int(i) for i in (head(run) != before).any(1).nonzero()]


@pytest.mark.parametrize(
    "outputs, first, second",
    [
        ("seen", [0, 1], [0, 1, 2, 3]),
        ("task", [0, 1], [2, 3]),
        ("all", [0, 1, 2, 3], [0, 1, 2, 3]),
    ],
)
def test_which_outputs_are_trained(build, outputs, first, second):
    run = build("finetune", outputs=outputs, train={"momentum": 0.9})
    assert changed_rows(run) == first
    assert changed_rows(run) == second


def test_weight_decay_reaches_the_other_rows(build):
    run = build("finetune", outputs="task", train={"weight_decay": 0.1})
    before = head(run)
    run.advance()
    shrink = head(run)[2:] / before[2:]
    assert shrink.lt(1).all()
    torch.testing.assert_close(shrink, shrink[0, 0].expand_as(shrink), rtol=1e-5, atol=0)


def test_is_plain_gradient_descent(build):
    run = build("finetune")
    network = torch.nn.Sequential(run.method.backbone, run.method.head)
    copy = {k: v.clone() for k, v in network.named_parameters()}
    generator = torch.Generator()
    generator.set_state(run.random.data.get_state())
    for batch in run.stream.data[0].train.batches(8, generator=generator):
        copy = {k: v.detach().requires_grad_() for k, v in copy.items()}
        z = torch.func.functional_call(network, copy, (batch.images,))
        loss = torch.nn.functional.cross_entropy(z[:, :2], batch.labels)
        gradients = torch.autograd.grad(loss, list(copy.values()))
        copy = {k: v - 0.05 * g for (k, v), g in zip(copy.items(), gradients, strict=True)}
    run.advance()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, copy[name])
