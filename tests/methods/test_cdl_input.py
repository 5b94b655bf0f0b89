"""What prompt learners and cdl refuse: one line with its place, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from prompt_making import LEARNERS, TEACHER, vit

from raycl.errors import UserError
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.plan.check_data import check_data

CNN = {"name": "cnn", "channels": [8], "features": 8}
FIRST: dict[str, Any] = {"anchor": "first_task"}
VALIDATED = {"benchmark": {"validation": 0.1}, "train": {"select": "validation_loss"}}
SINGLE = {"benchmark": {"tasks": 10}}


def load(folder: Path, method: dict[str, Any], **blocks: Any) -> spec.Sweep:
    """A sweep of five tasks of two digits on a network of 16 channels and two blocks."""
    stream = {"name": "split", "dataset": "digits", "tasks": 5} | blocks.pop("benchmark", {})
    sweep = {"name": "w", "benchmark": stream, "methods": [method], "network": vit()} | blocks
    path = folder / "w.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return spec.load(path)


def alone(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, **FIRST, **options}


def cdl(learner: Any = "l2p", scheme: str = "kdp", **options: Any) -> dict[str, Any]:
    block = {"name": "cdl", "learner": learner, "scheme": scheme, "teacher_network": TEACHER}
    return {**block, **FIRST, **options}


CODA, TWO = {"name": "coda_prompt", "blocks": [0, 1]}, {"blocks": [0, 1]}
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    # pools and streams
    (alone("coda_prompt", size=17, **TWO), {}, r"methods\[0\]\.size: 17 components, but 5 to 16"),
    (alone("coda_prompt", size=4, **TWO), {}, r"methods\[0\]\.size: 4 components, but 5 to 16"),
    (cdl({**CODA, "size": 17}), {}, r"methods\[0\]\.learner\.size: 17 components, but 5 to 16"),
    (alone("dual_prompt", size=4), {}, r"methods\[0\]\.size: 4 prompts are too few for 5 tasks"),
    (cdl({"name": "dual_prompt", "size": 4}), {}, r"\.learner\.size: 4 prompts are too few for 5"),
    (alone("l2p", top=31), {}, r"methods\[0\]: top 31 is more than the pool has: size 30"),
    (cdl({"name": "l2p", "size": 4, "top": 2}, "cdl_prompt"), {}, r"\.size: .* gives 0 components"),
    # rows and blocks
    (alone("l2p", length=3), {}, r"methods\[0\]\.length: it should be a multiple of 2, not 3"),
    (cdl({**CODA, "size": 6, "length": 5}), {}, r"methods\[0\]\.learner\.length: .*multiple of 2"),
    (cdl(kd_length=5), {}, r"methods\[0\]\.kd_length: it should be a multiple of 2, not 5"),
    (alone("l2p", blocks=[2]), {}, r"network: there is no block 2: the network has 2 blocks"),
    (cdl({"name": "l2p", "blocks": [2]}), {}, r" network: there is no block 2: .* 2 blocks"),
    (alone("l2p", blocks=[0, 0]), {}, r"methods\[0\]: block 0 is named twice"),
    (alone("coda_prompt", size=6, blocks=[0, 1, 1]), {}, r"methods\[0\]: block 1 is named twice"),
    (cdl({"name": "l2p", "blocks": [1, 1]}), {}, r"methods\[0\]: block 1 is named twice"),
    (cdl(kd_blocks=3), {}, r"methods\[0\]\.kd_blocks: kd_blocks 3, but the student has 2 blocks"),
    (
        cdl({"name": "l2p", "blocks": [2]}, teacher_network=vit(24, 3, 2)),
        {"network": vit(depth=3)},
        r"methods\[0\]\.teacher_network: there is no block 2: the network has 2 blocks",
    ),
    (
        alone("dual_prompt", size=5, blocks=[1], general_blocks=[0, 1]),
        {},
        r"methods\[0\]: block 1 has a general and an expert prompt",
    ),
    # networks
    (alone("l2p"), {"network": CNN}, r"network: prompts need a plain VisionTransformer.*class CNN"),
    (cdl(teacher_network=CNN), {}, r"methods\[0\]\.teacher_network: .*has the class CNN"),
    (cdl(teacher_network="vit"), {}, r"methods\[0\]\.teacher_network: unknown network 'vit'"),
    ({"name": "l2p"}, {}, r" network: .*this one has random weights; give it weights.*first_task"),
    (cdl(anchor="weights"), {}, r" network: .*this one has random weights; give it weights"),
    (cdl(scheme="review_kd", teacher_network=vit(24, 3, 1)), {}, r"review_kd needs a teacher of 2"),
    (
        cdl(scheme="fitnets", teacher_network=vit(24, 3, patch_size=2)),
        {},
        r"teacher_network: fitnets compares tokens: the student has 4 of an image, the teacher 16",
    ),
    (
        {k: v for k, v in cdl().items() if k != "teacher_network"},
        {},
        r"teacher_network: is missing",
    ),
    # learners and schemes
    (cdl("l2q"), {}, r"methods\[0\]\.learner: unknown method 'l2q'; did you mean 'l2p'\?"),
    (cdl("finetune"), {}, r"methods\[0\]\.learner: finetune has no prompts to learn; take l2p,"),
    (cdl("cdl"), {}, r"methods\[0\]\.learner: cdl has no prompts to learn"),
    (cdl({"size": 3}), {}, r"methods\[0\]\.learner: a learner needs a name"),
    (cdl({"name": "l2p", **FIRST}), {}, r"\.learner: anchor is an option of cdl itself"),
    (cdl({"name": "l2p", "aux_loss_scale": 1}), {}, r"aux_loss_scale is an option of cdl itself"),
    (cdl({"name": "l2p", "sise": 3}), {}, r"l2p has no option 'sise'; did you mean 'size'\?"),
    (cdl({"name": "l2p", "size": -3}), {}, r"methods\[0\]\.learner\.size: it should be greater"),
    (cdl(scheme="kdq"), {}, r"methods\[0\]\.scheme: unknown value 'kdq'; did you mean 'kd'\?"),
    (
        cdl("apt", "cdl_prompt"),
        {},
        r"\.scheme: cdl_prompt maps prefixes .* this learner makes none",
    ),
    (cdl("no_prompt", "cdl_prompt"), {}, r"methods\[0\]\.scheme: cdl_prompt maps prefixes"),
    *(
        (method, SINGLE, r" benchmark: task 1/10 \S+ has one class: .*give every task two classes")
        for method in (cdl(scheme="kd"), cdl(scheme="none"), alone("l2p"), alone("apt"))
    ),
    # training
    (alone("apt"), VALIDATED, r"train\.select: apt predicts with an average"),
    (cdl("apt"), VALIDATED, r"train\.select: apt predicts with an average"),
    (
        cdl(),
        VALIDATED | {"train": {"select": "validation_loss", "schedule": {"name": "plateau"}}},
        r"train\.schedule: the plateau schedule follows a score, and the teacher has none",
    ),
    (
        alone("l2p"),
        VALIDATED | {"train": {"select": "validation_loss", "schedule": {"name": "plateau"}}},
        r"train\.schedule: the plateau schedule follows a score, and the phase anchor has none",
    ),
]


@pytest.mark.parametrize("method,blocks,message", REFUSED, ids=[m for _, _, m in REFUSED])
def test_refusals(
    tmp_path: Path, method: dict[str, Any], blocks: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_data(load(tmp_path, method, **blocks), tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'w.yaml'}:")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "method,blocks",
    [
        (alone("coda_prompt", size=16, **TWO), {}),
        (alone("coda_prompt", size=5, **TWO), {}),
        (cdl({**CODA, "size": 16}, query_backbone="own"), {}),
        (cdl(scheme="kd"), {"benchmark": {"tasks": 5}}),
        (cdl(scheme="kd", teacher_network=vit(24, 3, 1)), {}),
        (cdl(scheme="kd", teacher_network=vit(24, 3, patch_size=2)), {}),
    ],
)
def test_what_is_at_the_edge_is_taken(
    tmp_path: Path, method: dict[str, Any], blocks: dict[str, Any]
) -> None:
    check_data(load(tmp_path, method, **blocks), tmp_path)


def test_options_of_the_learner_are_complete(tmp_path: Path) -> None:
    """A name, a short form and the long one are one trial; its key knows every default."""
    keys = []
    for learner in ("l2p", {"name": "l2p"}, {"name": "l2p", "size": 30, "blocks": [0]}):
        (plan,) = expand.final_plans(load(tmp_path, cdl(learner)), {})
        keys.append(plan.key)
    assert len(set(keys)) == 1
    full = plan.config["method"]["learner"]
    assert full == {"name": "l2p", "size": 30, "length": 20, "top": 5} | {
        "blocks": [0],
        "key_loss": "mean",
    }
    (other,) = expand.final_plans(load(tmp_path, cdl({"name": "l2p", "size": 29})), {})
    assert other.key not in keys
    assert [*LEARNERS["apt"]] == []
    (plan,) = expand.final_plans(load(tmp_path, cdl("apt")), {})
    assert plan.config["method"]["learner"] == {"name": "apt", "ema": 0.7}
