"""Search spaces of whole blocks: ``train``, and networks by their bare names."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycl.errors import UserError
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.plan.check_data import check_data

TEXT = """
name: blocks
benchmark: {name: split, dataset: digits, tasks: 2}
methods: [finetune, {name: ewc, lam: 3}]
network: {name: mlp, hidden: [16]}
train: {epochs: 3, lr: 0.05}
"""


def load(folder: Path, *overrides: str, smoke: bool = False) -> spec.Sweep:
    path = folder / "blocks.yaml"
    path.write_text(TEXT)
    return spec.load(path, overrides, smoke)


CHOICE = "train={choice: [{epochs: 2, momentum: 0.9}, {epochs: 4, optimizer: adam}]}"


def test_a_choice_of_training_is_searched_by_methods_without_a_train_of_their_own(
    tmp_path: Path,
) -> None:
    sweep = load(tmp_path, CHOICE, "search.num_samples=8")
    check_data(sweep, tmp_path)
    found = {
        (plan.config["train"]["epochs"], plan.config["train"]["optimizer"])
        for plan in expand.search_plans(sweep)
    }
    assert found == {(2, "sgd"), (4, "adam")}
    path = tmp_path / "choice.yaml"
    path.write_text(TEXT.replace("train: {epochs: 3, lr: 0.05}", CHOICE.replace("=", ": ", 1)))
    small = spec.load(path, smoke=True)
    assert {plan.config["train"]["epochs"] for plan in expand.search_plans(small)} == {1}
    path.write_text(path.read_text().replace("choice: [", "grid: [{lr: 0.1}, "))
    small = spec.load(path, smoke=True)
    assert [plan.config["train"]["epochs"] for plan in expand.search_plans(small)] == [1] * 4
    own = load(tmp_path, CHOICE, "methods.ewc.train={choice: [{epochs: 5}, {epochs: 7}]}")
    epochs = {plan.config["train"]["epochs"] for plan in expand.search_plans(own)}
    assert epochs <= {2, 4, 5, 7}
    assert epochs & {5, 7}


def test_options_beside_a_search_space_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one key, not 'loguniform' and 'epochs'"):
        load(tmp_path, "train={epochs: 50, loguniform: [0.001, 0.1]}")
    with pytest.raises(UserError, match=r"methods\[0\]\.train: cannot change single options of a"):
        load(tmp_path, CHOICE, "methods.finetune.train.epochs=3")


def test_networks_by_their_bare_names(tmp_path: Path) -> None:
    sweep = load(tmp_path, "methods=[{name: finetune, network: {grid: [mlp, cnn]}}]")
    check_data(sweep, tmp_path)
    plans = expand.search_plans(sweep)
    assert [plan.config["network"]["name"] for plan in plans] == ["mlp", "cnn"]
    assert all(len(plan.config["network"]) > 1 for plan in plans), "with every default"
    with pytest.raises(UserError, match=r"methods\[0\]\.train\.choice\[0\]: must be a mapping"):
        load(tmp_path, "methods=[{name: finetune, train: {choice: [3, 4]}}]")


def test_a_configuration_that_is_too_large_is_one_line(tmp_path: Path) -> None:
    sweep = load(tmp_path, f"network.hidden={[1] * 40_000}")
    with pytest.raises(UserError, match="the configuration has"):
        check_data(sweep, tmp_path)


def test_which_folders_are_tasks_is_written_down(tmp_path: Path) -> None:
    from PIL import Image

    for task in ("a", "b"):
        for name in ("x", "y"):
            (tmp_path / f"data/{task}/{name}").mkdir(parents=True)
            for i in range(6):
                Image.new("L", (8, 8), i).save(tmp_path / f"data/{task}/{name}/{i}.png")
    sweep = load(tmp_path, f"benchmark={{name: folder_sequence, path: {tmp_path}/data}}")
    assert sweep.resolved()["benchmark"][0]["tasks"] == ["a", "b"]
    (tmp_path / "data/b").rename(tmp_path / "data/c")
    assert expand.groups(sweep)[0].base.config["benchmark"]["tasks"] == ["a", "b"]
