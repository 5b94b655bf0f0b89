"""Expansion: counts, keys, draws, names; the same on every machine and in every order."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from raycl.errors import UserError
from raycl.methods.base import MethodConfig
from raycl.sweep.file import spec
from raycl.sweep.file.spaces import SpaceError, parse
from raycl.sweep.plan import expand
from raycl.sweep.plan.plan import fill, hashed, packed, plan_of

BASE = {
    "name": "demo",
    "benchmark": {"name": "split", "dataset": "digits", "tasks": 5},
    "methods": [
        {"name": "online_ewc", "lam": {"loguniform": [1, 1000]}},
        {
            "name": "naive_rehearsal",
            "memory_size": {"grid": [50, 100]},
            "outputs": {"choice": ["all", "seen"]},
        },
        {"name": "finetune"},
    ],
    "network": {"name": "mlp", "hidden": [16]},
    "train": {"epochs": 1, "lr": 0.05},
    "seeds": 3,
    "search": {"num_samples": 4, "seeds": 2},
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load(**changes) -> spec.Sweep:
        Path("s.yaml").write_text(yaml.safe_dump(BASE | changes, sort_keys=False))
        return spec.load(Path("s.yaml"))

    return load


PINNED = "cf0c4895ed707baa"  # of sha256 of {"a":[1.5,null],"b":1}
WINNERS = {
    ("split-digits-5", "online_ewc"): {"method.lam": 3.0},
    ("split-digits-5", "naive_rehearsal"): {"method.memory_size": 50, "method.outputs": "all"},
}


def test_counts_and_kinds(make):
    sweep = make()
    search = expand.search_plans(sweep)
    by_method = {m: [p for p in search if p.method == m] for m in ("online_ewc", "naive_rehearsal")}
    assert len(by_method["online_ewc"]) == 4 * 2  # draws x search seeds
    # 4 draws of 2 outputs, x 2 cells, x 2 seeds, less what was drawn twice
    drawn = {p.varied["method.outputs"] for p in by_method["naive_rehearsal"]}
    assert len(by_method["naive_rehearsal"]) == len(drawn) * 2 * 2
    assert {p.kind for p in search} == {"search"}
    assert {p.seed for p in search} == {1000, 1001}
    final = expand.final_plans(sweep, WINNERS)
    assert [(p.method, p.kind, p.seed) for p in final] == [
        (method, kind, seed)
        for method, kind in [
            ("online_ewc", "winner"),
            ("naive_rehearsal", "winner"),
            ("finetune", "trial"),
        ]
        for seed in (0, 1, 2)
    ]
    assert {p.method for p in expand.final_plans(sweep, {})} == {"finetune"}
    keys = [p.key for p in (*search, *final)]
    assert len(set(keys)) == len(keys)


def test_a_grid_alone_is_run_once_per_cell(make):
    methods = [{"name": "online_ewc", "lam": {"grid": [1, 2, 3]}, "gamma": {"grid": [0.5, 1]}}]
    plans = expand.search_plans(make(methods=methods, search={"num_samples": 9}))
    cells = [(p.varied["method.lam"], p.varied["method.gamma"]) for p in plans]
    assert sorted(cells) == list(itertools.product([1, 2, 3], [0.5, 1]))


def test_seeds_share_draws_and_finished_configs_hold_no_space(make):
    sweep = make()
    plans = [p for p in expand.search_plans(sweep) if p.method == "online_ewc"]
    by_seed = {s: [p.varied["method.lam"] for p in plans if p.seed == s] for s in (1000, 1001)}
    assert by_seed[1000] == by_seed[1001]
    assert len(set(by_seed[1000])) == 4
    assert all(1 <= v <= 1000 for v in by_seed[1000])
    for a, b in itertools.combinations(plans, 2):
        assert (a.config_key == b.config_key) == (a.varied == b.varied)
    for plan in (*plans, *expand.final_plans(sweep, WINNERS)):
        assert "loguniform" not in json.dumps(plan.config)
        assert plan.config["train"]["momentum"] == 0.0  # defaults are filled in
        assert plan.config["seed"] == plan.seed


def test_adding_a_method_or_a_draw_changes_no_other(make):
    def drawn(**changes):
        plans = expand.search_plans(make(**changes))
        return [
            p.varied["method.lam"] for p in plans if p.method == "online_ewc" and p.seed == 1000
        ]

    reference = drawn()
    assert drawn(methods=BASE["methods"][::-1]) == reference
    assert drawn(methods=BASE["methods"][:1]) == reference
    assert drawn(search={"num_samples": 6})[:4] == reference
    assert drawn(train={"epochs": 1, "lr": {"uniform": [0.1, 0.2]}}) == reference
    assert drawn(search={"num_samples": 4, "seed": 1}) != reference


def shuffled(tree):
    if isinstance(tree, dict):
        return {key: shuffled(tree[key]) for key in reversed(tree)}
    return tree


def test_keys_do_not_depend_on_the_order_of_the_file(make):
    one, other = (
        make(),
        make(**shuffled(BASE) | {"methods": [shuffled(m) for m in BASE["methods"][::-1]]}),
    )
    for plans in (expand.search_plans, lambda s: expand.final_plans(s, WINNERS)):
        assert {p.key: p.name for p in plans(one)} == {p.key: p.name for p in plans(other)}
    assert expand.spec_hash(one) == expand.spec_hash(other)


def test_keys_follow_what_decides_the_result(make):
    def keys(**changes):
        return {p.key for p in expand.final_plans(make(**changes), WINNERS)}

    reference = keys()
    assert keys(resources={"cpu": 2}) == reference  # threads follow resources and are no identity
    assert keys(train={"epochs": 1, "lr": 0.05, "momentum": 0}) == reference  # a default, spelt out
    assert not keys(train={"epochs": 2, "lr": 0.05}) & reference
    assert not keys(stop={"tasks": 2}) & reference
    renamed = [*BASE["methods"][:2], {"name": "finetune", "label": "sgd"}]
    assert len(keys(methods=renamed) - reference) == 3


def test_pinned_keys(make):
    """Keys name outcomes and checkpoints on disk: a change makes every old run unfindable."""
    assert hashed({"b": 1, "a": [1.5, None]}) == PINNED
    plan = expand.final_plans(make(), {})[0]
    config = {k: v for k, v in plan.config.items() if k not in ("threads", "seed")}
    identity = config | {"label": "finetune", "code": ""}
    assert plan.config_key == hashed(identity)
    assert plan.key == hashed(identity | {"seed": 0})


# of every method with its defaults on digits, as the first version that had it has made them
KEYS_OF_METHODS = {
    "abd": "8d23e44e61fc35c9",
    "batch_ensemble": "4647109a943ba2a5",
    "bic": "814b22430892c6fa",
    "blip": "77cee888bf05f9bc",
    "clr": "6a4184c91eb8c979",
    "deep_inversion": "84b0f0f52539dc28",
    "der": "815a9f187d6cae02",
    "derpp": "2ea8f3916ab0235c",
    "dgr": "752f10a0600bc20b",
    "distil": "b69d3b39ac8a578d",
    "distilbuf": "66514fc291973a12",
    "e2e": "91a8be62c4c86ae5",
    "er": "73396839eca9b10d",
    "ewc": "6e0b4f2f52c4c261",
    "finetune": "0bb9052e3c93d54d",
    "imm_mode": "5e4e85658bc60fcf",
    "joint": "ad67e481af72abd5",
    "li_adapter": "785863e3a2759645",
    "linear_probe": "0c9992e53850f340",
    "lwf": "176e19465e2a1bd8",
    "lwf_coreset": "17cd49d848efed8a",
    "lwf_mc": "7f7d2e7244cf0db9",
    "lwf_seen": "b148f425e436ddd6",
    "lwf_synthetic": "75e32feb0d6dd446",
    "naive_rehearsal": "408d57cf532b87c0",
    "online_ewc": "b56c968d8805a648",
    "packnet": "f59169803fdfbac9",
    "piggyback": "6bf2eb46896158a6",
    "pnn": "a7e440e383a558e5",
    "psp": "3c8fbaf82eaefe82",
    "qdi": "bda1eaa438f526b7",
    "separate_finetune": "add6747ede2c715c",
    "sgd_frozen": "66acec5e70e6bb19",
    "si": "25645de99631f428",
    "supsup": "22b651aed1d250c3",
}


def test_a_methods_keys_stay_when_it_has_new_options(make):
    """An option that came later goes into ``MethodConfig.unless_given``."""
    methods = [{"name": name} for name in KEYS_OF_METHODS]
    network = {"name": "cnn", "channels": [8, 8]}
    plans = expand.final_plans(make(methods=methods, network=network, seeds=1), {})
    assert {plan.method: plan.key for plan in plans} == KEYS_OF_METHODS


class Later(MethodConfig):
    unless_given = ("later",)

    first: int = 1
    later: int | None = None


def test_an_option_that_came_later_is_dumped_only_where_it_is_given():
    assert Later(name="m").model_dump(mode="json") == {"name": "m", "first": 1}
    given = {"name": "m", "first": 1, "later": 0}
    assert Later(name="m", later=0).model_dump(mode="json") == given
    assert Later.model_validate(given) != Later(name="m")


def test_spec_hash_covers_results_and_nothing_else(make):
    reference = expand.spec_hash(make())
    published = {"source": "x", "average_accuracy": {"finetune": 1.0}}
    for same in (
        {"published": published},
        {"tracking": {"uri": "sqlite:////x"}},
        {"tracking": {"pictures": False}},
        {"report": {"baseline": "finetune"}},
        {"description": "other"},
        {"resources": {"cpu": 2}},
        {"storage": "/elsewhere"},
        {"failures": {"max_retries": 0}},
        {"checkpoint": {"every_s": 5}},
        {"name": "other"},
        {"seeds": [2, 0, 1]},
        {"smoke": {"seeds": 1}},
    ):
        assert expand.spec_hash(make(**same)) == reference, same
    for other in (
        {"seeds": 4},
        {"train": {"epochs": 2, "lr": 0.05}},
        {"methods": BASE["methods"][:2]},
        {"readouts": ["task"]},
        {"fixed_seeds": {"init": 3}},
        {"search": {"num_samples": 5, "seeds": 2}},
        {"scheduler": {"name": "asha"}, "search": {"num_samples": 4}},
        {"stop": {"tasks": 3}},
        {"methods": [{"name": "online_ewc", "lam": {"uniform": [1, 1000]}}, *BASE["methods"][1:]]},
    ):
        assert expand.spec_hash(make(**other)) != reference, other


def test_a_changed_method_file_is_another_method(make):
    code = "from raycl.methods.finetune import Finetune\nclass Mine(Finetune):\n    pass\n"
    Path("m.py").write_text(code)
    before = make(methods=["m.py:Mine"])
    first = expand.final_plans(before, {})[0], expand.spec_hash(before)
    Path("m.py").write_text(code + "    x = 1\n")
    after = make(methods=["m.py:Mine"])
    second = expand.final_plans(after, {})[0], expand.spec_hash(after)
    assert first[0].config == second[0].config
    assert first[0].key != second[0].key
    assert first[1] != second[1]


def test_blocks_are_merged(make):
    sweep = make(
        methods=[
            {
                "name": "finetune",
                "train": {"schedule": {"patience": 3}},
                "network": {"dropout": 0.5},
            },
            {"name": "finetune", "label": "b", "train": {"schedule": {"name": "cosine"}}},
            {"name": "finetune", "label": "c", "network": {"name": "cnn"}},
        ],
        train={"epochs": 1, "schedule": {"name": "step", "milestones": [1]}},
    )
    a, b, c = (p.config for p in expand.final_plans(sweep, {}) if p.seed == 0)
    assert a["train"]["schedule"]["milestones"] == [1]
    assert a["train"]["schedule"]["patience"] == 3
    assert a["network"]["hidden"] == [16]
    assert a["network"]["dropout"] == 0.5
    assert b["train"]["schedule"]["milestones"] == []  # another schedule takes nothing over
    assert c["network"]["name"] == "cnn"


def test_several_benchmarks_and_first_tasks(make):
    sweep = make(
        benchmark=[{"name": "split", "tasks": 5}, {"name": "permuted", "label": "perm"}],
        search={"num_samples": 2, "protocol": "first_tasks", "tasks": 3},
        stop={"tasks": 4},
    )
    search, final = expand.search_plans(sweep), expand.final_plans(sweep, {})
    assert {p.benchmark for p in search} == {"split-digits-5", "perm"}
    assert {p.config["tasks"] for p in search} == {3}
    assert {p.config["tasks"] for p in final} == {4}
    lam = {
        b: [p.varied["method.lam"] for p in search if p.method == "online_ewc" and p.benchmark == b]
        for b in ("split-digits-5", "perm")
    }
    assert lam["perm"] != lam["split-digits-5"]


def test_names_are_unique_safe_and_short(make):
    methods = [
        {
            "name": "online_ewc",
            "label": "e" * 40,
            "lam": {"grid": [1.00001, 1.00002]},
            "gamma": {"grid": [1]},
        },
        {"name": "finetune", "network": {"hidden": {"grid": [[8], [8, 8]]}}},
    ]
    sweep = make(
        benchmark=["split", {"name": "split", "tasks": 2}], methods=methods, seeds=[2**32 - 1]
    )
    plans = expand.search_plans(sweep)
    names = [p.name for p in plans]
    assert len(set(names)) == len(names) == 2 * (2 * 2 + 2 * 2)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,80}", name) for name in names)
    simple = expand.search_plans(make(methods=methods[1:], search={"seeds": 1}))
    assert [p.name for p in simple] == ["finetune-hidden8-s1000", "finetune-hidden8x8-s1000"]


def test_options_that_do_not_go_together_are_named(make):
    train = {
        "epochs": 1,
        "optimizer": {"choice": ["sgd", "adam"]},
        "momentum": {"choice": [0, 0.9]},
    }
    sweep = make(methods=["finetune"], train=train, search={"num_samples": 40})
    with pytest.raises(
        UserError, match=r"momentum and nesterov are for optimizer: sgd \(with train.mom"
    ):
        expand.search_plans(sweep)


def test_oversize_configuration_is_refused(make):
    sweep = make(network={"name": "mlp", "hidden": [10_000] * 12_000})
    with pytest.raises(UserError, match=r"the configuration has .* bytes, more than 65536"):
        expand.final_plans(sweep, {})


def test_preview_lists_everything_without_data(make):
    lines = expand.preview(make(benchmark={"name": "split", "dataset": "cifar100"}))
    search = [line for line in lines if line.stage == "search"]
    final = [line for line in lines if line.stage == "final"]
    assert len(final) == 9
    assert {line.varied for line in final if line.method == "online_ewc"} == {
        "winner of the search"
    }
    assert len({line.name for line in lines}) == len(lines)
    assert search[0].resources == {"cpu": 1.0, "gpu": 0.0, "memory": 0.0, "env_runners": 0}


def test_optuna_plans_are_filled_where_they_run(make):
    methods = [{"name": "online_ewc", "lam": {"loguniform": [1, 1000]}}]
    sweep = make(methods=methods, search={"num_samples": 3, "algorithm": "optuna"})
    assert expand.search_plans(sweep) == []
    assert sum(line.stage == "search" for line in expand.preview(sweep)) == 3
    (group,) = expand.groups(sweep)
    base = expand.search_base(sweep, group)
    seed = sweep.search_seeds()[0]
    config = {"plan": packed(replace(base, seed=seed)), "space": {"method.lam": 5.5}}
    plan = plan_of(json.loads(json.dumps(config)))
    assert plan == fill(base, {"method.lam": 5.5}, seed, "search")
    assert plan.config["method"]["lam"] == 5.5
    assert plan_of({"plan": packed(plan)}) == plan


@pytest.mark.parametrize(
    "space",
    [
        {"uniform": [-2, 3]},
        {"quniform": [0.2, 0.8, 0.2]},
        {"loguniform": [0.001, 10]},
        {"qloguniform": [10, 1000, 10]},
        {"randint": [3, 6]},
        {"choice": ["a", 5, None]},
    ],
)
def test_draws_mean_what_tune_means(space):
    parsed = parse(space)
    assert parsed is not None
    generator = np.random.default_rng(0)
    drawn = [parsed.draw(generator) for _ in range(2000)]
    ((kind, args),) = space.items()
    if kind == "choice":
        assert set(drawn) == set(args)
        return
    low, high = args[:2]
    assert low <= min(drawn)
    assert max(drawn) <= high
    middle = (low * high) ** 0.5 if "log" in kind else (low + high) / 2
    if kind == "randint":
        assert set(drawn) == {3, 4, 5}
        assert all(isinstance(v, int) for v in drawn)
    elif kind.startswith("q"):
        assert all(abs(v / args[2] - round(v / args[2])) < 1e-9 for v in drawn)
        assert {low, high} <= set(drawn)
    else:
        assert np.isclose(np.mean([v < middle for v in drawn]), 0.5, atol=0.04)


def test_bad_spaces():
    for value in (
        {"grid": []},
        {"uniform": [1]},
        {"quniform": [0, 1, 0.3]},
        {"randint": [1, True]},
    ):
        with pytest.raises(SpaceError):
            parse(value)
    assert parse({"lr": 3}) is None
    assert parse([1]) is None


def test_a_learner_of_ones_own_in_a_methods_options_is_a_file_that_workers_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_learner.py").write_text(
        "from raycl.methods.l2p import L2P\n\n\nclass Mine(L2P):\n    pass\n"
    )
    learner = {"name": "own_learner.py:Mine"}
    cdl = {"name": "cdl", "teacher_network": "mlp", "learner": learner}
    sweep = spec.Sweep.model_validate(
        {
            "name": "s",
            "benchmark": {"name": "split", "dataset": "digits", "tasks": 2},
            "methods": [cdl],
            "network": {"name": "mlp", "hidden": [8]},
        }
    )
    assert expand.python_files(sweep) == ["own_learner.py"]
    assert expand.own_files(sweep)
