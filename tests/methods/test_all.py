"""What the methods of this folder have in common, beside the conformance suite."""

from __future__ import annotations

import pytest
import torch

from raycl.errors import UserError
from raycl.testing import finish, tensors

METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "bic": ("bic", {"memory_size": 40}),
    "blip": ("blip", {}),
    "deep_inversion": ("deep_inversion", {"power_iterations": 4, "latent": 8}),
    "der": ("der", {"memory_size": 40}),
    "derpp": ("derpp", {"memory_size": 40}),
    "e2e": ("e2e", {"memory_size": 40}),
    "distil": ("distil", {}),
    "distilbuf": ("distilbuf", {"memory_size": 40}),
    "er": ("er", {"memory_size": 40}),
    "ewc": ("ewc", {"lam": 50}),
    "ewc, single images": ("ewc", {"lam": 5, "fisher": "per_example"}),
    "finetune": ("finetune", {}),
    "imm_mode": ("imm_mode", {"lam": 0.1}),
    "imm_mode, merged": ("imm_mode", {"lam": 0.1, "merge": "mode"}),
    "joint": ("joint", {}),
    "lwf": ("lwf", {}),
    "lwf_coreset": ("lwf_coreset", {"memory_size": 40}),
    "lwf_mc": ("lwf_mc", {}),
    "lwf_mc, softmax": ("lwf_mc", {"loss": "softmax"}),
    "lwf_seen": ("lwf_seen", {}),
    "qdi": ("qdi", {"inversion_steps": 4, "synthetic_images": 20}),
    "lwf_synthetic": ("lwf_synthetic", {"power_iterations": 4, "latent": 8}),
    "naive_rehearsal": ("naive_rehearsal", {}),
    "naive_rehearsal, list": ("naive_rehearsal", {"replay": "list"}),
    "online_ewc": ("online_ewc", {}),
    "sgd_frozen": ("sgd_frozen", {}),
    "si": ("si", {"c": 5}),
}
PENALISED = [
    "ewc",
    "ewc, single images",
    "imm_mode",
    "imm_mode, merged",
    "lwf",
    "online_ewc",
]
"""Methods with a second term of their loss, weighed by ``lam``."""
OLD_HEADS_MOVE = {
    "bic",
    "deep_inversion",
    "der",
    "derpp",
    "e2e",
    "distil",
    "distilbuf",
    "er",
    "joint",
    "lwf",
    "lwf_coreset",
    "lwf_mc",
    "lwf_mc, softmax",
    "lwf_seen",
    "qdi",
    "lwf_synthetic",
    "naive_rehearsal",
    "naive_rehearsal, list",
}
"""Methods that train the outputs of earlier tasks even with ``outputs: task``."""


@pytest.fixture
def build(build):
    """``build`` by a key of ``METHODS``; keywords go before its options."""

    def build_with_options(key, /, **changes):
        method, options = METHODS[key]
        return build(method, **{**options, **changes})

    return build_with_options


@pytest.mark.parametrize("method", METHODS)
def test_state_round_trip_after_add_task(build, method):
    first = build(method)
    finish(first)
    second = build(method)
    for info in second.stream.info.tasks:
        second.method.add_task(info)
    second.method.load_state_dict(first.method.state_dict(), strict=True)
    images = torch.randn(5, 1, 8, 8)
    assert torch.equal(first.method.logits(images, None), second.method.logits(images, None))
    assert first.method.diagnostics() == second.method.diagnostics()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("outputs", ["seen", "task", "all"])
def test_every_output_setting_learns(build, method, outputs):
    run = build(method, outputs=outputs, train={"epochs": 4})
    matrix = finish(run)["matrices"]["task"]
    assert matrix[0][0] > 80
    assert matrix[1][1] > 80


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"bic"}))  # which refuses them
@pytest.mark.parametrize("name", ["permuted", "rotated", "split"])
def test_shared_outputs(build, method, name):
    run = build(method, benchmark={"name": name}, train={"augment": "flip", "clip_norm": 1.0})
    finish(run)
    assert all(value.isfinite().all() for value in tensors(run.method.state_dict()))


@pytest.mark.parametrize("method", METHODS)
def test_an_epoch_cannot_be_selected_without_validation_set(build, method):
    run = build(method, benchmark={"validation": 0}, train={"select": "validation_loss"})
    with pytest.raises(UserError, match=r"train\.select: validation_loss needs a validation set"):
        run.advance()


def flat(run):
    network = (run.method.backbone, run.method.head)
    return torch.cat([p.detach().flatten() for part in network for p in part.parameters()])


def rows(run):
    return torch.cat([run.method.head.weight, run.method.head.bias[:, None]], 1).detach().clone()


@pytest.mark.parametrize("method", PENALISED)
def test_strength_zero_is_fine_tuning(build, method):
    plain = build("finetune", outputs="task", train={"epochs": 2})
    run = build(method, outputs="task", lam=0, train={"epochs": 2})
    penalties = []
    while not run.done:
        merged = method == "imm_mode, merged" and run.task_index == 1
        plain.advance()
        row = run.advance()
        penalties += [v for k, v in row.items() if k in ("train/penalty", "train/distillation")]
        if not (merged and run.done):  # then it is between the two solutions
            assert torch.equal(flat(run), flat(plain))
    assert penalties == [0, 0]


@pytest.mark.parametrize("method", PENALISED)
def test_the_first_task_has_no_second_term(build, method):
    row = build(method).advance()
    assert not {"train/cross_entropy", "train/penalty", "train/distillation"} & row.keys()


@pytest.mark.parametrize("method", PENALISED)
def test_epochs_are_selected_by_the_whole_loss(build, method):
    train = {"epochs": 2, "select": "validation_loss", "lr": 0.1}
    network = {"name": "mlp", "hidden": [16], "dropout": 0.5}
    run = build(method, outputs="task", train=train, network=network)
    while run.task_index == 0:
        run.advance()
    run.advance()
    task = run._task
    (phase,) = run.method.phases(task)
    (batch,) = task.validation.batches(1000)
    run.method.eval()
    terms = {name: value.item() for name, value in phase.loss(batch).items()}
    assert len(terms) == 2
    assert all(value > 0 for value in terms.values())
    assert phase.score() == pytest.approx(-sum(terms.values()), rel=1e-5)
    z = run.method.logits(batch.images, None)[:, [2, 3]]
    plain = torch.nn.functional.cross_entropy(z, batch.labels - 2)
    assert terms["cross_entropy"] == pytest.approx(plain.item())


@pytest.mark.parametrize("method", sorted(METHODS.keys() - OLD_HEADS_MOVE))
def test_other_heads_keep_every_bit(build, method):
    stream = {"name": "permuted", "outputs": "separate", "tasks": 3}
    run = build(method, benchmark=stream, outputs="task", train={"momentum": 0.9})
    before = rows(run)
    for task in run.stream.info.tasks:
        run.advance()
        assert run.task_index == task.index + 1
        after = rows(run)
        own = list(task.classes)
        others = [i for i in range(len(after)) if i not in own]
        assert torch.equal(after[others], before[others])
        assert (after[own] != before[own]).any()
        before = after


@pytest.mark.parametrize("method", ["blip", "finetune", "naive_rehearsal"])
def test_tasks_of_one_class_are_refused_where_only_they_compete(build, method):
    """A softmax over one output is 1: nothing would be learnt, and the task's readout say 100 %."""
    with pytest.raises(UserError, match=r"benchmark: task 1/4 \S+ has one class"):
        build(method, benchmark={"tasks": 4}, outputs="task")
    assert build("finetune", benchmark={"tasks": 4}).num_tasks == 4
    assert build("lwf_mc", benchmark={"tasks": 4}, outputs="task").num_tasks == 4  # sigmoids
