"""A stream whose tasks have networks of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raycl.errors import UserError
from raycl.methods.finetune import Finetune
from raycl.networks.base import find_network, networks_of
from raycl.networks.sequence import NetworkSequence
from raycl.testing import finish, tensors, toy_data
from raycl.training.check import try_out
from raycl.training.run import Run

MLP: dict[str, Any] = {"name": "mlp", "hidden": [16]}
CNN: dict[str, Any] = {"name": "cnn", "channels": [4], "features": 12, "batch_norm": True}


def config(of: list[Any], method: str = "finetune", tasks: int = 2, **method_options: Any) -> dict:
    return {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": tasks, "validation": 0.2},
        "method": {"name": method, **method_options},
        "network": {"name": "sequence", "of": of},
        "train": {"epochs": 2, "batch_size": 8, "lr": 0.05},
    }


def after_first_task(of: list[Any], method: str = "finetune") -> Run:
    run = Run(config(of, method), toy_data())
    while run.task_index == 0:
        run.advance()
    return run


def test_repeats_are_written_out() -> None:
    found = networks_of({"name": "sequence", "of": [{**MLP, "repeat": 2}, "cnn"]}, 3)
    assert [block["name"] for block in found] == ["mlp", "mlp", "cnn"]
    assert found[0] == found[1]
    assert "repeat" not in found[0]
    assert found[0]["dropout"] == 0, "defaults are filled in, so that equal networks are equal"


def test_the_rest_of_the_networks_is_not_used() -> None:
    assert len(networks_of({"name": "sequence", "of": [MLP, CNN, MLP]}, 2)) == 2


def test_one_network_is_that_of_all_tasks() -> None:
    assert networks_of(MLP, 3) == (MLP,) * 3


def test_too_few_networks() -> None:
    with pytest.raises(UserError, match=r"network\.of: 1 networks for 2 tasks; .* repeat: N"):
        Run(config([MLP]), toy_data())


@pytest.mark.parametrize(
    "of, what",
    [
        (["mpl"], "unknown network 'mpl'; did you mean 'mlp'?"),
        ([{"name": "mlp", "hiden": [3]}], "has no option 'hiden'; did you mean 'hidden'?"),
        ([{"name": "mlp", "dropout": 2}], "option dropout of network mlp"),
        ([{**MLP, "repeat": 0}], "repeat must be a number of tasks, at least 1, not 0"),
        ([{**MLP, "repeat": True}], "repeat must be a number of tasks"),
        ([{"hidden": [3]}], "every network of a sequence needs a name"),
        ([{"name": "sequence", "of": ["mlp"]}], "a sequence cannot be a network of another"),
        ([], "at least 1 item"),
    ],
)
def test_members_are_checked(of: list[Any], what: str) -> None:
    with pytest.raises(ValidationError) as caught:
        find_network({"name": "sequence", "of": of})
    assert what in str(caught.value)


def test_a_sequence_is_never_built() -> None:
    with pytest.raises(TypeError, match="build one of its members"):
        NetworkSequence(NetworkSequence.Config(name="sequence", of=(MLP,)), (1, 8, 8))


def test_the_network_stays_where_blocks_are_equal() -> None:
    run = after_first_task([MLP, dict(MLP)])
    old = list(run.method.network.parameters())
    run._enter_task()
    new = list(run.method.network.parameters())
    assert all(a is b for a, b in zip(old, new, strict=True))


def test_a_new_network_and_head_where_they_differ() -> None:
    run = after_first_task([MLP, CNN])
    run._enter_task()
    backbone, head = run.method.network
    assert type(backbone).__name__ == "CNN"
    assert head.in_features == 12


def test_equal_architectures_of_other_options_are_another_network() -> None:
    run = after_first_task([MLP, {"name": "mlp", "hidden": [16], "dropout": 0.5}])
    old = run.method.head
    run._enter_task()
    assert run.method.head is not old


def test_the_old_network_is_the_teacher_itself() -> None:
    run = after_first_task([MLP, CNN], "lwf_seen")
    backbone, head = run.method.network
    before = [t.clone() for t in tensors(run.method.network.state_dict())]
    run._enter_task()
    assert run.method.teacher[0] is backbone, "no copy is made"
    assert run.method.teacher[1] is head
    run.advance()
    after = list(tensors(run.method.teacher.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_teacher_is_a_copy_where_the_network_stays() -> None:
    run = after_first_task([MLP, MLP], "lwf_seen")
    run._enter_task()
    assert run.method.teacher[1] is not run.method.head
    assert torch.equal(run.method.teacher[1].weight, run.method.head.weight)


def test_a_constant_sequence_is_the_network_alone() -> None:
    same = finish(Run(config([MLP, MLP], "lwf_seen"), toy_data()))
    alone = finish(Run(config([], "lwf_seen") | {"network": MLP}, toy_data()))
    assert same["matrices"] == alone["matrices"]


@pytest.mark.parametrize("method, extra", [("finetune", 0), ("lwf_seen", (64 + 1) * 16 + 17 * 4)])
def test_parameters_count_against_the_network_of_the_task(method: str, extra: int) -> None:
    """The second network is larger than the first, and plain itself; the teacher is extra."""
    large = {"name": "mlp", "hidden": [50]}
    assert (
        finish(Run(config([MLP, large], method), toy_data()))["cost"]["extra_parameters"] == extra
    )


@pytest.mark.parametrize("method", ["ewc", "online_ewc", "imm_mode", "blip", "sgd_frozen", "si"])
def test_methods_of_single_weights_are_refused(method: str) -> None:
    options = {"lam": 1.0} if "ewc" in method else {}
    with pytest.raises(UserError, match=f"{method} cannot change networks"):
        Run(config([MLP, CNN], method, **options), toy_data())
    Run(config([MLP, MLP], method, **options), toy_data())  # equal networks are one


def test_joint_starts_with_the_network_of_the_task() -> None:
    run = after_first_task([MLP, CNN], "joint")
    run._enter_task()
    assert type(run.method.backbone).__name__ == "CNN"


def test_abd_compares_outputs_where_features_differ() -> None:
    options = {"power_iterations": 2, "latent": 4}
    result = finish(Run(config([MLP, CNN], "abd", **options), toy_data()))
    assert result["matrices"]["task"][1][1] > 80


def test_zero_shot_is_the_old_networks() -> None:
    """R[t - 1, t] is measured when task t - 1 ends, before the new network is there."""
    run = after_first_task([MLP, CNN])
    measured = run.matrices.sets["test"]["task"][0, 1]
    run.method.eval()
    again = run.evaluator.accuracy(run.method, run.stream.data[1].test, 1, 1)["task"]
    assert measured == again


# ---------------------------------------------------------------------- before any work


def info() -> Any:
    return Run(config([MLP, MLP]), toy_data()).stream.info


@pytest.mark.parametrize(
    "of, method, what",
    [
        ([MLP, {"name": "cnn", "channels": [4] * 5}], {}, "5 stages halve an image of 8x8"),
        ([MLP, {"name": "torchvision", "model": "alexnet"}], {}, "alexnet does not take images"),
        ([MLP], {}, "1 networks for 2 tasks"),
        ([MLP, CNN], {"name": "e2e", "memory_size": 1}, "1 images are too few"),
        ([MLP, CNN], {"name": "blip"}, "cannot change networks"),
    ],
)
def test_trying_out(of: list[Any], method: dict[str, Any], what: str) -> None:
    finished = config(of)
    finished["method"] |= method
    stream = info()  # which sets the seeds
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=what):
        try_out(finished, stream)
    assert torch.equal(state, torch.get_rng_state()), "nothing is drawn"


class ReadsItsWeights(Finetune):
    """A network whose constructor needs memory."""

    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(options, context)
        self.largest = float(self.head.weight.detach().numpy().max())


def test_trying_out_a_constructor_that_needs_memory() -> None:
    finished = config([MLP, MLP])
    finished["method"] = {"name": f"{__name__}:ReadsItsWeights"}
    try_out(finished, info())


@pytest.mark.parametrize("model", ["mobilenet_v3_small", "vit_b_16"])
def test_trying_out_needs_no_weights(model: str) -> None:
    """Weights that have to be downloaded are not: only the structure is built."""
    block = {"name": "torchvision", "model": model, "weights": "DEFAULT"}
    if model == "vit_b_16":
        with pytest.raises(UserError, match="vit_b_16 does not take images of 8x8"):
            try_out(config([]) | {"network": block}, info())
    else:
        try_out(config([]) | {"network": block}, info())
