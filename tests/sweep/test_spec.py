"""Every bad sweep file is one line: place in the file, what is wrong, nearest valid name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raycl import yaml12
from raycl.cli import main
from raycl.errors import UserError
from raycl.sweep.file import spec
from raycl.sweep.plan.check_data import check_data

GOOD = """\
name: demo
benchmark: {name: split, dataset: digits, tasks: 5}
methods:
  - finetune
  - {name: online_ewc, label: ewc}
network: {name: mlp, hidden: [32]}
train: {epochs: 2, lr: 0.05}
seeds: 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str = GOOD, *overrides: str, smoke: bool = False) -> spec.Sweep:
    Path("s.yaml").write_text(text)
    return spec.load(Path("s.yaml"), overrides, smoke)


def run_cli(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["raycl", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


OVERRIDES = [
    # keys and names
    ("nam=3", "nam: unknown key 'nam'; did you mean 'name'?"),
    ("name=a/b", "name: 'a/b' names a folder"),
    ("name=5", "name: it should be a valid string, not 5"),
    ("benchmark.name=splt", "benchmark.name: unknown benchmark 'splt'; did you mean 'split'?"),
    ("benchmark=splt", "benchmark: unknown benchmark 'splt'; did you mean 'split'?"),
    (
        "benchmark.task=3",
        "benchmark.task: benchmark split has no option 'task'; did you mean 'tasks'?",
    ),
    ("benchmark.dataset=mnst", "benchmark.dataset: unknown data set 'mnst'; did you mean 'mnist'?"),
    (
        "benchmark.dataset.limt=3",
        "benchmark.dataset.limt: unknown key 'limt'; did you mean 'limit'?",
    ),
    (
        "benchmark=[{name: split}, {name: split, dataset: mnsit}]",
        "benchmark[1].dataset: unknown data set 'mnsit'; did you mean 'mnist'?",
    ),
    (
        "methods.ewc.name=fintune",
        "methods[1].name: unknown method 'fintune'; did you mean 'finetune'?",
    ),
    (
        "methods.ewc.lamb=3",
        "methods[1].lamb: method online_ewc has no option 'lamb'; did you mean 'lam'?",
    ),
    ("network=mpl", "network: unknown network 'mpl'; did you mean 'mlp'?"),
    (
        "network.hiden=[3]",
        "network.hiden: network mlp has no option 'hiden'; did you mean 'hidden'?",
    ),
    ("train.epoch=3", "train.epoch: train has no option 'epoch'; did you mean 'epochs'?"),
    ("train.schedule.nme=step", "train.schedule.nme: unknown key 'nme'; did you mean 'name'?"),
    ("resources.gpus=1", "resources.gpus: unknown key 'gpus'; did you mean 'gpu'?"),
    (
        "methods.ewc.resources.gpus=1",
        "methods[1].resources.gpus: unknown key 'gpus'; did you mean 'gpu'",
    ),
    ("fixed_seeds.inti=3", "fixed_seeds.inti: unknown key 'inti'; did you mean 'init'?"),
    # types and bounds
    ("benchmark.tasks=0", "benchmark.tasks: it should be greater than or equal to 1, not 0"),
    ("benchmark.tasks=five", "benchmark.tasks: it should be a valid integer, not 'five'"),
    ("benchmark.validation=1", "benchmark.validation: it should be less than 1, not 1"),
    ("benchmark=[]", "benchmark: must not be empty"),
    ("methods=[]", "methods: must not be empty"),
    ("methods={finetune: {}}", "methods: it should be a list"),
    ("methods.ewc.lam=-1", "methods[1].lam: it should be greater than or equal to 0, not -1"),
    ("methods.ewc.train.lr=-1", "methods[1].train.lr: it should be greater than 0, not -1"),
    ("network=", "network: it should be a mapping, not null"),
    ("network.hidden=32", "network.hidden: it should be a list, not 32"),
    ('network.hidden=["32"]', "network.hidden[0]: must be a number, not '32'"),
    ("train.epochs=1.5", "train.epochs: it should be a valid integer"),
    ('train.epochs="5"', "train.epochs: must be a number, not '5'"),
    ("train.epochs=true", "train.epochs: must be a number, not true"),
    ("train={nesterov: true}", "train: nesterov needs momentum > 0"),
    ("train.optimizer=adm", "train.optimizer: unknown value 'adm'; did you mean 'adam'?"),
    ("train.lr=.inf", "must be a finite number"),
    ("seeds=0", "seeds: the number of seeds must be 1 to 1000, not 0"),
    ("seeds=[1, 1]", "seeds: 1 is given twice"),
    ("seeds=[-1]", "seeds[0]: it should be greater than or equal to 0, not -1"),
    ("seeds=two", "seeds: it should be a list, not 'two'"),
    ("checkpoint.keep=1", "checkpoint.keep: it should be greater than or equal to 2, not 1"),
    ("resources.gpu=-1", "resources.gpu: it should be greater than or equal to 0, not -1"),
    ("resources.gpu=1.5", "resources.gpu: more than one GPU must be a whole number, not 1.5"),
    ("storage=relative/x", "storage: 'relative/x' must be an absolute path or a URI"),
    ("stop.tasks=0", "stop.tasks: it should be greater than or equal to 1, not 0"),
    # labels, seeds, readouts
    ("methods.ewc.label=finetune", "methods[1].label: the label 'finetune' is taken by methods[0]"),
    ("methods=[finetune, finetune]", "methods[1]: the label 'finetune' is taken by methods[0]"),
    ("methods.ewc.label=a b", "methods[1].label: 'a b' is no label"),
    (
        "benchmark=[split, split]",
        "benchmark[1]: the label 'split-digits-5' is taken by benchmark[0]",
    ),
    ("fixed_seeds={class_order: 0, init: 0, data: 0}", "every seed would be the same trial"),
    ("readouts=[clas]", "readouts[0]: unknown value 'clas'; did you mean 'class'?"),
    ("readouts=[class, class]", "readouts: class is given twice"),
    ("report.baseline=fintune", "no method has the label 'fintune'; did you mean 'finetune'?"),
    (
        "report.upper_bound=fintune",
        "report.upper_bound: no method has the label 'fintune'; did you mean 'finetune'?",
    ),
    (
        "published={source: x, omega: {finetune: 73.4}}",
        "published.omega: omega is relative to an upper bound, and the sweep names none; "
        "set report.upper_bound to the label of a method such as joint",
    ),
    (
        "published={source: x, task/omga: {finetune: 73.4}}",
        "unknown metric 'omga'; did you mean 'omega'?",
    ),
    # search spaces
    (
        "benchmark.tasks={grid: [2, 5]}",
        "benchmark.tasks: a search space is for methods, network and",
    ),
    ("methods.ewc.lam={grid: []}", "methods[1].lam.grid: an empty grid"),
    ("methods.ewc.lam={grid: [1, 1]}", "methods[1].lam.grid[1]: 1 is given twice"),
    (
        "methods.ewc.lam={grid: [1, -1]}",
        "methods[1].lam.grid[1]: it should be greater than or equal",
    ),
    (
        "methods.ewc.outputs={choice: [seen, sen]}",
        "methods[1].outputs.choice[1]: unknown value 'sen'; did",
    ),
    ("methods.ewc.lam={choice: 3}", "methods[1].lam.choice: choice needs a list, not 3"),
    (
        "methods.ewc.lam={grid: [1], choice: [2]}",
        "a search space has one key, not 'grid' and 'choice'",
    ),
    ("methods.ewc.lam={logunifrm: [1, 2]}", "search space: did you mean 'loguniform'?"),
    (
        "train.lr={loguniform: [0, 1]}",
        "train.lr.loguniform[0]: a logarithmic space needs a lower bound",
    ),
    (
        "train.lr={loguniform: [1, 0.1]}",
        "train.lr.loguniform: the lower bound must be below the upper",
    ),
    (
        "train.lr={loguniform: [1]}",
        "train.lr.loguniform: needs 2 numbers, {loguniform: [low, high]}",
    ),
    ("train.lr={uniform: [-1, 1]}", "train.lr.uniform[0]: it should be greater than 0, not -1.0"),
    ("train.momentum={uniform: [0, 1]}", "train.momentum.uniform[1]: it should be less than 1"),
    ("train.epochs={uniform: [1, 5]}", "train.epochs.uniform: it should be a valid integer"),
    (
        "train.epochs={quniform: [1, 5, 2]}",
        "train.epochs.quniform[0]: 1 is not a multiple of the step 2",
    ),
    (
        "train.epochs={randint: [0, 5]}",
        "train.epochs.randint[0]: it should be greater than or equal",
    ),
    (
        "train.epochs={randint: [1, 5.5]}",
        "train.epochs.randint[1]: must be a whole number, not 5.5",
    ),
    ("network.hidden=[{grid: [10, 0]}]", "network.hidden[0].grid[1]: it should be greater than or"),
    (
        "network.name={choice: [mlp, mpl]}",
        "network.name.choice[1]: unknown network 'mpl'; did you mean",
    ),
    (
        "train={optimizer: {choice: [sgd, adam]}, momentum: 0.9}",
        "train.optimizer.choice[1]: momentum and nesterov are for optimizer: sgd",
    ),
    # search and scheduler
    (
        "search.metric=eval/average_accuracy",
        "search.metric: 'eval/average_accuracy' is not on validation",
    ),
    (
        "search.metric=validation/acuracy",
        "unknown metric 'acuracy' on validation data; did you mean",
    ),
    ("search.metric=validation/clas/forgetting", "unknown readout 'clas'; did you mean 'class'?"),
    ("search.algorithm=optun", "search.algorithm: unknown value 'optun'; did you mean 'optuna'?"),
    ("search.protocol=first_tasks", "search.tasks goes with, and only with, protocol: first_tasks"),
    (
        "search.tasks=2",
        "search.tasks: search.tasks goes with, and only with, protocol: first_tasks",
    ),
    ("search.num_samples=0", "search.num_samples: it should be greater than or equal to 1, not 0"),
    (
        "scheduler=pbt",
        "scheduler: population based training is not offered on a stream of tasks: it copies",
    ),
    ("scheduler.name=ahsa", "scheduler.name: unknown value 'ahsa'; did you mean 'asha'?"),
    # published
    (
        "published={source: x, forgetting: {ewc: {mean: 3, sd: 1}}}",
        "published: a figure has no 'sd'; did you mean 'std'?",
    ),
    (
        "published={source: x, forgetting: {ewc: {mean: 3, n: 0}}}",
        "published: the n of a figure: input should be greater than or equal to 1",
    ),
    (
        "published={source: x, forgetting: {ewc: {mean: null, std: 1}}}",
        "published: the mean of a figure: input should be a valid number",
    ),
    (
        "published={source: x, in_full: {seeds: 3}}",
        "published.in_full.seeds: the finished sweep has a list there, which '3' never equals",
    ),
    (
        "published={source: x, in_full: {methods: {ewcc: {lam: 3}}}}",
        "published.in_full.methods.ewcc: the sweep has no 'ewcc' there; did you mean 'ewc'?",
    ),
    (
        "published={source: x, in_full: {train: {epoch: 3}}}",
        "published.in_full.train.epoch: the sweep has no 'epoch' there; did you mean 'epochs'?",
    ),
    ("published={average_accuracy: {ewc: 3}}", "published.source: is missing"),
    (
        "published={source: x, avg_accuracy: {ewc: 3}}",
        "unknown metric 'avg_accuracy'; did you mean",
    ),
    (
        "published={source: x, clas/forgetting: {ewc: 3}}",
        "unknown readout 'clas'; did you mean 'class'",
    ),
    (
        "published={source: x, forgetting: {ewcc: 3}}",
        "no method or benchmark has the label 'ewcc'; did",
    ),
    (
        "published={source: x, forgetting: {split-digits-6: {ewc: 3}}}",
        "did you mean 'split-digits-5'?",
    ),
    (
        "published={source: x, forgetting: {ewc: high}}",
        "published.forgetting.ewc: it should be a valid",
    ),
    # overrides themselves
    ("methods.ewcc.lam=3", "methods has no 'ewcc'; did you mean 'ewc'?"),
    ("methods=[{name: finetune, label: 5}]", "methods[0].label: it should be a valid string"),
    ("methods[5].lam=3", "methods has 2 elements, counted from 0"),
    ("train.lr.x=3", "train.lr is 0.05, nothing is below it"),
    ("train[0]=3", "train is not a list"),
    ("train", "expected PATH=VALUE"),
    ("a..b=3", "'a..b' is not a path"),
    ("train.epochs=[1", "not valid YAML"),
    ("train={a: 1, a: 2}", "a is given twice"),
    ("smoke={train.epoch: 1}", "train.epoch: train has no option 'epoch'; did you mean 'epochs'?"),
]


@pytest.mark.parametrize("override, expected", OVERRIDES)
def test_bad_value_is_one_line_and_exit_2(here, capsys, override, expected):
    (here / "s.yaml").write_text(GOOD)
    code, out, err = run_cli(capsys, "run", "s.yaml", "--set", override)
    assert (code, out) == (2, "")
    assert err.startswith(("error: --set ", "error: s.yaml"))
    assert err.count("\n") == 1
    assert expected in err


def test_omega_may_be_published_beside_an_upper_bound(here, capsys):
    (here / "s.yaml").write_text(
        GOOD
        + "report: {upper_bound: ewc}\n"
        + "published: {source: x, omega: {finetune: 73.4}, task/omega: {ewc: 100}}\n"
    )
    code, out, err = run_cli(capsys, "run", "s.yaml", "--dry-run")
    assert (code, err) == (0, "")
    assert "finetune" in out


FILES = [
    ("", "s.yaml: is empty"),
    ("- a", "s.yaml: must be a mapping"),
    ("a: [1\nb: 3", "s.yaml:2: not valid YAML"),
    (GOOD + "seeds: 4\n", "s.yaml:9: seeds is given twice (first in line 8)"),
    (GOOD + "1: 2\n", "s.yaml:9: a key must be text, not 1"),
    (GOOD + "sedes: 4\n", "s.yaml:9: sedes: unknown key 'sedes'; did you mean 'seeds'?"),
    (GOOD.replace("  - finetune\n", "  - fintune\n"), "s.yaml:4: methods[0]: unknown method"),
    (GOOD.replace("ewc}", "ewc, lam: -1}"), "s.yaml:5: methods[1].lam: it should be greater"),
    (GOOD.replace("network:", "netwrk:"), "network: is missing"),
    (GOOD.replace("{name: split, ", "{"), "s.yaml:2: benchmark.name: is missing"),
    ("a: &x [*x]", "s.yaml: is nested too deeply"),
    ("a: !!python/object:os.system x", "s.yaml:1: not valid YAML"),
    ("a: 1\n---\nb: 2", "s.yaml:2: not valid YAML"),
    ("a: \x01", "s.yaml: not valid YAML"),
    ("[" * 3000, "s.yaml: is nested too deeply"),
    ("x: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"x{i}: &a{i} [{', '.join(['*a' + str(i - 1 if i else '')] * 10)}]\n" for i in range(6)
    ), "has more than 100000 values"),
]  # fmt: skip


@pytest.mark.parametrize("text, expected", FILES)
def test_bad_file_names_its_line(here, capsys, text, expected):
    (here / "s.yaml").write_text(text)
    code, _, err = run_cli(capsys, "run", "s.yaml", "--dry-run")
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1


def test_paths_that_are_no_files(here, capsys):
    (here / "sweep.yaml").write_text(GOOD)
    (here / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path, expected in {
        "sweeep.yaml": "sweeep.yaml: no such file (looked in",
        ".": ".: is a folder, not a sweep file; it holds binary.yaml, sweep.yaml",
        "binary.yaml": "binary.yaml: is not UTF-8 text (byte 0)",
    }.items():
        code, _, err = run_cli(capsys, "run", path)
        assert code == 2
        assert expected in err
    assert "did you mean 'sweep.yaml'?" in run_cli(capsys, "run", "sweeep.yaml")[2]


@pytest.mark.parametrize(
    "path, hint",
    [
        ("sweeps/blip/mnist55.yaml", "did you mean 'sweeps/blip/mnist5.yaml'?"),
        ("sweeps/mnist5.yaml", "did you mean 'sweeps/blip/mnist5.yaml'?"),
        ("mnist5", "did you mean 'sweeps/blip/mnist5.yaml'?"),
        ("mnist", "did you mean 'sweeps/mnist.yaml'?"),
        ("sweeps/mnist", "did you mean 'sweeps/mnist.yaml'?"),
        ("elsewhere/quick.yaml", "there are sweeps/blip/mnist5.yaml, sweeps/mnist.yaml"),
        ("sweeps", "it holds sweeps/mnist.yaml, sweeps/blip/mnist5.yaml"),
        ("sweeps/blip", "it holds sweeps/blip/mnist5.yaml"),
    ],
)
def test_sweeps_in_folders_are_suggested(here, capsys, path, hint):
    (here / "sweeps/blip").mkdir(parents=True)
    for name in ("mnist", "blip/mnist5"):
        (here / f"sweeps/{name}.yaml").write_text(GOOD)
    code, _, err = run_cli(capsys, "run", path, "--dry-run")
    assert code == 2
    assert err.endswith(f"; {hint}\n")


def test_without_any_sweep_nothing_is_suggested(here, capsys):
    code, _, err = run_cli(capsys, "run", "mnist", "--dry-run")
    assert code == 2
    assert err.endswith(f"no such file (looked in {here})\n")


@pytest.mark.parametrize(
    "code, expected",
    [
        ("import no_such_module", "fails on import: ModuleNotFoundError"),
        ("def f(:", "fails on import: SyntaxError"),
        ("import sys; sys.exit(3)", "fails on import: SystemExit(3)"),
        ("class Other: pass", "'m.py' has no Method 'Mine'"),
    ],
)
def test_method_file_that_does_not_work(here, code, expected):
    (here / "m.py").write_text(code)
    with pytest.raises(UserError) as error:
        load(GOOD, "methods.ewc.name=m.py:Mine")
    assert error.value.where.endswith("methods[1].name")
    assert expected in str(error.value)


TASK_ONLY = """
from raycl.methods.finetune import Finetune
class Mine(Finetune):
    settings = frozenset({"task"})
"""


def test_readout_a_method_does_not_support(here):
    (here / "m.py").write_text(TASK_ONLY)
    text = GOOD.replace("{name: online_ewc, label: ewc}", "m.py:Mine")
    with pytest.raises(
        UserError, match=r"readouts\[1\]: methods\[1\] cannot be evaluated by 'class'; Mine"
    ):
        load(text, "readouts=[task, class]")
    with pytest.raises(
        UserError, match=r"search.metric: methods\[1\] cannot be evaluated by 'class'"
    ):
        load(text, "search.metric=validation/class/forgetting", "train.lr={grid: [1, 2]}")
    assert load(text, "readouts=[task]").readouts == ("task",)


def test_what_does_not_go_together(here):
    spaces = "methods.ewc.lam={grid: [1, 2]}"
    cases = [
        (
            ["benchmark.validation=0", spaces],
            r"validation: is 0, but methods\[1\] \(ewc\) is searched",
        ),
        (["benchmark.validation=0", "train.select=validation_loss"], "selects epochs"),
        (
            ["search.algorithm=optuna", spaces],
            r"methods\[1\].lam: a grid cannot be searched by optuna",
        ),
        (["scheduler=asha", "search.seeds=2"], "search.seeds: must be 1 with asha"),
        (
            ["search.metric=validation/forgetting", "stop.tasks=1", spaces],
            "forgetting needs 2 tasks",
        ),
        (
            ["search.protocol=first_tasks", "search.tasks=5", "stop.tasks=3"],
            "search.tasks: must be at most stop.tasks, 3, not 5",
        ),
        (
            ["search.metric=validation/task/forgetting", "readouts=[class]"],
            "'task' is not among readouts",
        ),
    ]
    for overrides, expected in cases:
        with pytest.raises(UserError, match=expected):
            load(GOOD, *overrides)


def test_numbers_and_words_are_those_of_yaml_1_2(here):
    text = GOOD.replace("lr: 0.05", "lr: 1e-3, weight_decay: 5.e-4").replace(
        "seeds: 3", "seeds: [010, 0o17, 0x1F]"
    )
    sweep = load(text + "description: no\n")
    assert sweep.train == {"epochs": 2, "lr": 0.001, "weight_decay": 0.0005}
    assert sweep.seeds == (10, 15, 31)
    assert sweep.description == "no"


def test_anchors_and_merge_keys_work(here):
    text = GOOD.replace("{epochs: 2, lr: 0.05}", "&t {epochs: 2, lr: 0.05}")
    text = text.replace("label: ewc}", "label: ewc, train: {<<: *t, lr: 0.1}}")
    text = text.replace("methods:", "x: 0\nmethods:").replace("x: 0\n", "")
    lines = text.splitlines()
    lines.insert(2, lines.pop(6))  # train before methods
    assert load("\n".join(lines)).methods[1].train == {"epochs": 2, "lr": 0.1}


def test_an_alias_of_merged_values_may_come_twice(here):
    text = GOOD.replace("train: {epochs: 2, lr: 0.05}\n", "")
    text = text.replace("methods:", "train: &t {epochs: 2, lr: 0.05}\nmethods:")
    twice = "label: ewc, train: &u {<<: *t, lr: 0.1}}\n  - {name: ewc, label: again, train: *u}"
    sweep = load(text.replace("label: ewc}", twice))
    assert [method.train for method in sweep.methods[1:]] == [{"epochs": 2, "lr": 0.1}] * 2


def test_short_forms_and_round_trip(here):
    sweep = load(GOOD, "methods.ewc.lam={loguniform: [1, 100]}", "train.clip_norm=null")
    assert [entry.label for entry in sweep.methods] == ["finetune", "ewc"]
    assert sweep.seeds == (0, 1, 2)
    assert sweep.methods[1].options == {"lam": {"loguniform": [1, 100]}}
    again = spec.Sweep.model_validate(sweep.resolved())
    assert again.resolved() == sweep.resolved()
    assert again.train["clip_norm"] is None


def test_in_full_a_method_may_have_what_the_sweep_has_otherwise(here):
    wanted = "published={source: x, in_full: {train: {lr: 0.05}, methods: {ewc: %s}}}"
    for own in ("{train: {lr: 0.1}}", "null"):
        assert load(GOOD, wanted % own).published is not None
    with pytest.raises(UserError, match=r"in_full.methods.ewc.train.lrr: the sweep has no 'lrr'"):
        load(GOOD, wanted % "{train: {lrr: 0.1}}")


def test_what_is_written_is_read_as_the_same(here):
    """Words that one version of YAML takes for numbers, and another does not."""
    sweep = load(GOOD, "methods[0]={name: finetune, label: '1e-3'}", "name='08'")
    assert (sweep.name, sweep.methods[0].label) == ("08", "1e-3")
    again = load(yaml12.dump(sweep.resolved()))
    assert again.resolved() == sweep.resolved()


def test_a_list_of_one_benchmark_is_like_that_benchmark(here):
    one = GOOD.replace("benchmark: {", "benchmark: [{").replace("}\nmethods", "}]\nmethods")
    assert load(one, "benchmark.tasks=2").benchmark[0]["tasks"] == 2
    assert load(one, "benchmark[0].tasks=2").benchmark[0]["tasks"] == 2
    assert load(one, "benchmark.split.tasks=2").benchmark[0]["tasks"] == 2
    two = one.replace("}]\nmethods", "}, permuted]\nmethods")
    with pytest.raises(UserError, match="benchmark has no 'tasks'; valid: permuted, split"):
        load(two, "benchmark.tasks=2")


LAM = "methods.ewc.lam={loguniform: [1, 100]}"


def test_what_a_searcher_that_proposes_cannot_do(here):
    with pytest.raises(
        UserError, match=r"search.seeds: must be 1 with optuna, which learns from ea"
    ):
        load(GOOD, LAM, "search={algorithm: optuna, seeds: 2}")
    assert load(GOOD, LAM, "search={algorithm: random, seeds: 2}").search.seeds == 2
    both = "train={optimizer: {choice: [sgd, adam]}, momentum: {uniform: [0, 0.9]}}"
    with pytest.raises(UserError, match=r"momentum.uniform.*: momentum and nesterov are for"):
        load(GOOD, both, "search.algorithm=optuna")


def test_a_search_metric_that_one_task_does_not_have(here, tmp_path):
    given = (LAM, "search.metric=validation/forgetting", "benchmark.dataset=digits")
    check_data(load(GOOD, *given, "benchmark.tasks=2"), tmp_path)
    with pytest.raises(UserError, match=r"search.metric: forgetting needs 2 tasks, .* has 1"):
        check_data(load(GOOD, *given, "benchmark.tasks=1"), tmp_path)
    check_data(load(GOOD, *given[1:], "benchmark.tasks=1"), tmp_path)  # nothing is searched


def test_automatic_smoke_leaves_a_search_the_tasks_that_its_metric_needs(here):
    search = "search: {protocol: first_tasks, tasks: 3, metric: validation/%s}\n"
    for metric, tasks in (("forgetting", 2), ("average_accuracy", 1)):
        text = GOOD.replace("label: ewc", "label: ewc, lam: {grid: [1, 2]}") + search % metric
        assert load(text, smoke=True).search.tasks == tasks


def test_mode_follows_the_metric(here):
    assert load(GOOD, "search.metric=validation/forgetting").search.mode == "min"
    assert load(GOOD, "search.num_samples=3").search.mode == "max"
    assert load(GOOD, "search={metric: validation/forgetting, mode: max}").search.mode == "max"


def test_search_seeds_are_fresh(here):
    sweep = load(GOOD, "seeds=[1000, 1]", "search.seeds=2")
    assert sweep.search_seeds() == (1001, 1002)


def test_overrides_address_lists_by_index_label_and_name(here):
    sweep = load(
        GOOD, "methods[0].outputs=all", "methods.ewc.lam=7", "methods.online_ewc.gamma=0.5",
        "benchmark.dataset.limit=9",
    )  # fmt: skip
    assert sweep.methods[0].options == {"outputs": "all"}
    assert sweep.methods[1].options == {"lam": 7, "gamma": 0.5}
    assert sweep.benchmark[0]["dataset"] == {"name": "digits", "limit": 9}


def test_a_method_is_also_addressed_by_the_label_it_has_by_default(here):
    Path("mine.py").write_text(
        'from raycl.methods.ewc import EWC\n\n\nclass Mine(EWC):\n    """Mine."""\n'
    )
    text = GOOD.replace("- finetune", "- mine.py:Mine\n  - online_ewc")
    sweep = load(text, "methods.Mine.lam=7", "methods.online_ewc.lam=3")
    assert [method.options.get("lam") for method in sweep.methods] == [7, 3, None]
    with pytest.raises(UserError, match="methods has no 'foo'"):  # beside a label that is no text
        load(GOOD.replace("label: ewc", "label: 5"), "methods.foo.lam=3")


def test_automatic_smoke(here):
    text = GOOD.replace("label: ewc}", "lam: {grid: [1, 2, 3]}, train: {epochs: 9}}")
    sweep = load(text, smoke=True)
    assert sweep.name == "demo-smoke"
    assert (sweep.train["epochs"], sweep.stop.tasks, sweep.seeds) == (1, 2, (0,))
    assert sweep.methods[1].train == {"epochs": 1}
    assert sweep.methods[1].options == {"lam": {"grid": [1, 2]}}
    assert load(text, "seeds=2", smoke=True).seeds == (0, 1)
    assert load(text).train["epochs"] == 2
    grid = text.replace("{epochs: 2, lr", "{epochs: {grid: [3, 4]}, lr")
    assert load(grid, smoke=True).train["epochs"] == 1
    short = load(GOOD.replace("tasks: 5", "tasks: 1"), smoke=True)
    assert short.stop.tasks == 1
    assert load(GOOD.replace("demo", "d" * 80), smoke=True).name == "d" * 74 + "-smoke"


def test_own_smoke_block_replaces_the_automatic_one(here):
    sweep = load(GOOD + "smoke: {train.epochs: 1, methods.ewc.lam: 3}\n", smoke=True)
    assert (sweep.train["epochs"], sweep.seeds, sweep.methods[1].options) == (
        1,
        (0, 1, 2),
        {"lam": 3},
    )


def test_data_is_checked_with_the_place_in_the_file(here):
    for overrides, expected in [
        (["benchmark.tasks=11"], "benchmark.tasks"),
        (["benchmark.dataset=mnist"], "mnist is not in .*raycl data fetch mnist"),
        (
            ["benchmark=[split, {name: split, dataset: mnist}]"],
            r"benchmark\[1\].dataset: mnist is not in",
        ),
        (["benchmark.dataset.path=x"], "benchmark.dataset.path"),
        (
            ["benchmark.tasks=3", "readouts=[domain]"],
            r"readouts\[0\]: split-digits-3 has no readout 'domain'",
        ),
        (["stop.tasks=6"], "stop.tasks: 6 tasks, but split-digits-5 has 5"),
        (["benchmark.top_k=10"], "benchmark.top_k: is 10, but there are 10 outputs: every image"),
        (
            ["benchmark.dataset.limit=2", "benchmark.validation=0.1"],
            "benchmark.validation: 0.1 of 4",
        ),
        (
            [
                "benchmark.tasks=3",
                "train.lr={grid: [1]}",
                "search.metric=validation/domain/forgetting",
            ],
            "search.metric: split-digits-3 has no readout 'domain'",
        ),
    ]:
        sweep = load(GOOD, *overrides)
        with pytest.raises(UserError, match=expected):
            check_data(sweep, here)
    assert list(check_data(load(), here)) == ["digits"]


def test_ray_is_not_needed(here):
    (here / "s.yaml").write_text(GOOD)
    code = (
        "import sys; from pathlib import Path; from raycl.sweep.file import spec;"
        "from raycl.sweep.plan import expand;"
        "expand.preview(spec.load(Path('s.yaml')));"
        "print(sorted({'ray', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_override_may_be_about_what_a_smoke_block_replaces(here: Path) -> None:
    text = GOOD.replace("benchmark: {", "benchmark:\n  - {label: first, ")
    text += "smoke: {benchmark: {name: split, dataset: digits, tasks: 2}}\n"
    sweep = load(text, "benchmark[0].tasks=4")
    assert sweep.benchmark[0]["tasks"] == 4
    assert load(text, smoke=True).benchmark[0]["tasks"] == 2
    with pytest.raises(UserError, match="benchmark is not a list"):
        load(text, "benchmark[0].tasks=4", smoke=True)
