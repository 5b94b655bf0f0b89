"""The command line: exit codes, one-line errors, quick start-up, and what it prints."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raycl import doctor, registry
from raycl.cli import main
from raycl.methods.base import Method
from raycl.report.published import _in_full as in_full
from raycl.sweep.execution.cluster import Broken
from raycl.sweep.execution.ray_here import RayDied
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.plan.check_data import check_data
from raycl.sweep.record.outcomes import Outcomes

SWEEPS = Path(__file__).parents[1] / "sweeps"


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("RAYCL_DATA", "RAYCL_RUNS", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "restored in the end, also if a command sets it")
        monkeypatch.delenv(name)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["raycl", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["rnu"], "Did you mean 'run'?"),
        (["run", "--smok", "x"], "--smoke"),
        (["run"], "Missing argument"),
        (["ui", "--port", "many"], "--port"),
        (["list", "method"], "unknown kind 'method'; did you mean 'methods'?"),
        (["show", "methods", "joint"], "unknown kind 'methods'; did you mean 'method'?"),
        (["show", "method", "onlin_ewc"], "unknown method 'onlin_ewc'; did you mean 'online_ewc'?"),
        (["show", "sweep", "no.yaml"], "no.yaml: no such file"),
        (["resume", "nothing"], "nothing"),
        (["data", "fetch", "mnst"], "unknown data set 'mnst'; did you mean 'mnist'?"),
    ],
)
def test_wrong_arguments_exit_with_2(cli, arguments, expected):
    code, out, err = cli(*arguments)
    assert code == 2
    assert out == ""
    assert expected in err


def test_help_is_quick():
    code = (
        "import sys; sys.argv = ['raycl', '--help']\n"
        "from raycl.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print({'ray', 'torch', 'mlflow', 'numpy', 'pydantic'} & set(sys.modules) or 'light')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Commands:" in done.stdout
    assert done.stdout.splitlines()[-1] == "light"


@pytest.mark.parametrize(
    "main, code, out",
    [
        ("print('said', end='')", 0, "said, last words"),
        ("print('said', end=''); sys.exit()", 0, "said, last words"),
        ("print('said', end=''); sys.exit(3)", 3, "said, last words"),
        ("threading.Thread(target=later).start(); sys.exit(2)", 2, "later, last words"),
        ("print('said', end=''); raise ValueError('ours')", 1, "said, last words"),
        ("print('said', end=''); sys.exit('in words')", 1, "said, last words"),
    ],
)
def test_the_process_ends_with_its_code_and_all_it_said(main, code, out):
    script = (
        "import atexit, sys, threading, time\n"
        "import raycl.__main__ as process\n"
        "def later(): time.sleep(0.3); print('later', end='')\n"
        "def main():\n"
        "    atexit.register(print, ', last words', end='')\n"
        f"    {main}\n"
        "process.main = main\n"
        "process.run()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    assert ("ours" in done.stderr) == ("ours" in main)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
def test_output_that_cannot_be_written_is_not_a_success():
    command = [sys.executable, "-m", "raycl", "list", "methods"]
    with Path("/dev/full").open("w") as full:
        assert subprocess.run(command, stdout=full, stderr=subprocess.PIPE).returncode != 0


def test_dry_run_lists_every_trial(cli):
    code, out, _ = cli("run", str(SWEEPS / "quickstart.yaml"), "--dry-run", "--set", "seeds=2")
    lines = out.splitlines()
    assert code == 0
    assert lines[-1] == "8 trials of quickstart: 0 search, 8 final"
    assert lines[1].split()[:3] == ["final", "finetune-s0", "0"]
    assert not Path("runs").exists()


def test_smoke_dry_run(cli):
    code, out, _ = cli("run", str(SWEEPS / "quickstart.yaml"), "--dry-run", "--smoke")
    assert code == 0
    assert out.splitlines()[-1] == "4 trials of quickstart-smoke: 0 search, 4 final"


@pytest.mark.parametrize(
    "path", sorted(SWEEPS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(SWEEPS))
)
def test_every_sweep_file_is_valid_with_a_header(path):
    sweep = spec.load(path)
    spec.load(path, smoke=True)
    assert sweep.name == "-".join(path.relative_to(SWEEPS).with_suffix("").parts)
    assert sweep.description
    header = path.read_text().split("name:")[0]
    assert re.search(rf"raycl (run|pretrain) sweeps/{path.relative_to(SWEEPS)}\b", header)
    assert "What one should see" in header
    if sweep.published is not None:
        asked = sweep.published.in_full["train"]["epochs"]
        assert asked == sweep.resolved()["train"]["epochs"], "a shorter run must say so"
        for entry in sweep.methods:
            assert in_full(sweep.resolved(), entry.label), f"{entry.label} as it stands there"


@pytest.mark.parametrize("path", sorted((SWEEPS / "blip").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_method_of_blip_competes_inside_the_task(path):
    sweep = spec.load(path)
    assert sweep.readouts == ("task",)
    plans = expand.final_plans(sweep, {})
    assert {plan.method for plan in plans} >= {"sgd", "sgd_frozen", "blip"}
    for plan in plans:
        block = plan.config["method"]
        cls = registry.find("raycl.methods", Method, block["name"])
        assert cls.Config.model_validate(block).outputs == "task", plan.method


@pytest.mark.parametrize("name, trials", [("table1", 63), ("table2", 72)])
def test_tables_of_data_free_learning_are_trained_as_published(name, trials):
    """The recipe of arXiv 2106.09701, in every trial; only dgr has no weight decay."""
    sweep = spec.load(SWEEPS / "dfcil" / f"{name}.yaml")
    plans = expand.final_plans(sweep, {})
    assert len(plans) == trials
    for plan in plans:
        train, benchmark = plan.config["train"], plan.config["benchmark"]
        assert (train["epochs"], train["batch_size"], train["drop_last"]) == (250, 128, True)
        assert (train["lr"], train["momentum"], train["nesterov"]) == (0.1, 0.9, False)
        assert train["weight_decay"] == (0 if plan.method == "dgr" else 2e-4)
        assert train["schedule"]["milestones"] == [100, 150, 200]
        assert train["augment"] == "jitter_crop_flip"
        assert (benchmark["dataset"]["name"], benchmark["validation"]) == ("cifar100", 0)
        cls = registry.find("raycl.methods", Method, plan.config["method"]["name"])
        options = cls.Config.model_validate(plan.config["method"]).model_dump()
        published = {"outputs": "seen", "power_iterations": 10_000, "memory_size": 2000}
        published |= {"temperature": 2, "mu": 0.1 if plan.method == "abd" else 1}
        published |= {"replay": "list_with_duplicates", "stage2_lr_factor": 0.01, "holdout": 0.1}
        published |= {"fix_kd": False, "freeze_bn": False, "apply_at_eval": False}
        if plan.method.endswith("-corrected"):
            published |= {"fix_kd": True, "freeze_bn": True, "apply_at_eval": True}
        assert {k: v for k, v in options.items() if published.get(k, v) != v} == {}


def test_quickstart_can_be_run_here(tmp_path):
    assert list(check_data(spec.load(SWEEPS / "quickstart.yaml"), tmp_path)) == ["digits"]


def test_show_sweep_prints_a_sweep_file(cli, tmp_path):
    code, out, _ = cli("show", "sweep", str(SWEEPS / "quickstart.yaml"))
    assert code == 0
    (tmp_path / "again.yaml").write_text(out)
    assert spec.load(tmp_path / "again.yaml").resolved() == yaml.safe_load(out)


def test_show_network_names_the_kind_of_each_element(cli):
    code, out, _ = cli("show", "network", "alexnet")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("hidden")]
    assert "list of integer" in line
    assert "items ≥ 2, items ≤ 2, ≥ 1" in line


def test_show_method_lists_options_with_bounds(cli):
    code, out, _ = cli("show", "method", "online_ewc")
    assert code == 0
    images, games = out.split("online_ewc (method, for games)")
    assert images.startswith("online_ewc (method, for images)")
    assert "fisher_batches" in games
    assert "settings" not in games
    out = images
    (line,) = [line for line in out.splitlines() if line.startswith("gamma ")]
    assert [part.strip() for part in line.split("  ") if part.strip()][:4] == [
        "gamma", "number", "1.0", "≥ 0, ≤ 1",
    ]  # fmt: skip
    assert "settings: class, domain, task" in out
    assert "memory: none" in out


def test_show_benchmark_lists_nested_options(cli):
    code, out, _ = cli("show", "benchmark", "split")
    assert code == 0
    assert any(line.startswith("dataset.limit ") for line in out.splitlines())


def test_show_a_method_of_ones_own(cli):
    Path("m.py").write_text(
        "from raycl.methods.finetune import Finetune\n"
        "class Mine(Finetune):\n    '''My idea.'''\n    memory = 'exemplars'\n"
    )
    code, out, _ = cli("show", "method", "m.py:Mine")
    assert code == 0
    assert "My idea." in out
    assert "memory: exemplars" in out


@pytest.mark.parametrize("what", ["methods", "benchmarks", "networks"])
def test_list_registered(cli, what):
    code, out, _ = cli("list", what)
    assert code == 0
    assert {"methods": "joint", "benchmarks": "permuted", "networks": "mlp"}[what] in out
    named = {"methods": "blip", "benchmarks": "atari", "networks": "atari_cnn"}[what]
    words = [
        line.replace(",", "").split()[:3]
        for line in out.splitlines()
        if line.startswith(named + " ")
    ]
    kinds = [{"images", "games"} & set(line[1:]) for line in words]
    assert (
        kinds
        == {
            "methods": [{"images"}, {"games"}],
            "benchmarks": [{"games"}],
            "networks": [{"images", "games"}],
        }[what]
    )


def test_list_sweeps_and_runs(cli):
    assert "no sweep files in" in cli("list", "sweeps")[1]
    assert "no runs in" in cli("list", "runs")[1]
    Path("sweeps").mkdir()
    Path("sweeps/a.yaml").write_text((SWEEPS / "quickstart.yaml").read_text())
    Path("sweeps/b.yaml").write_text("name: [\n")
    code, out, _ = cli("list", "sweeps")
    assert code == 0
    assert "sweeps/a.yaml  12" in out
    assert "error: sweeps/b.yaml:2: not valid YAML" in out


def test_a_hidden_copy_of_a_run_is_not_listed(cli, monkeypatch):
    for name in ("mnist", ".mnist-old"):
        outcomes = Path("runs", name, "outcomes")
        outcomes.mkdir(parents=True)
        (outcomes.parent / "spec.json").write_text("{}")
        (outcomes / "gone.json").symlink_to("removed meanwhile")
    monkeypatch.setattr(Outcomes, "__init__", lambda self, _: setattr(self, "_known", {}))
    code, out, _ = cli("list", "runs")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if "mnist" in line] == ["mnist"]


def test_schema_is_json(cli):
    code, out, _ = cli("schema")
    assert code == 0
    assert json.loads(out)["title"] == "raycl sweep"


def test_data_list_looks_where_it_is_told(cli, tmp_path):
    code, out, _ = cli("data", "list", "--data", str(tmp_path / "d"))
    assert code == 0
    assert f"not in {tmp_path / 'd'}" in out
    assert "bundled" in out


def test_user_errors_of_the_runner_are_one_line(cli):
    code, out, err = cli("run", str(SWEEPS / "mnist.yaml"), "--data", "nowhere")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "mnist is not in" in err
    assert "raycl data fetch mnist" in err


def test_doctor(cli, tmp_path):
    code, out, _ = cli("doctor", "--runs", str(tmp_path / "runs"))
    assert code == 0, out
    topics = [line[6:].partition(":")[0] for line in out.splitlines()]
    assert topics == [
        "python", "packages", "cpu", "gpu", "import torch", "runs folder", "tracking",
        "left behind", "ray token", "data",
    ]  # fmt: skip


def test_doctor_fails_on_what_would_not_work(cli, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, _ = cli(
        "doctor", "--runs", str(tmp_path / "file"), "--tracking-uri", "http://127.0.0.1:9"
    )
    assert code == 1
    assert "fail  runs folder:" in out
    assert "fail  tracking: no tracking server answers at http://127.0.0.1:9" in out


def test_doctor_explains_the_ray_token_trap(tmp_path):
    token = tmp_path / "auth_token"

    def level(environment: dict[str, str]) -> str:
        (finding,) = doctor.ray_token(environment, token)
        return finding.level

    assert level({}) == "ok"
    assert level({"RAY_AUTH_TOKEN": "x"}) == "warn"
    assert level({"RAY_AUTH_TOKEN_PATH": str(token)}) == "fail"
    token.write_text("secret")
    assert level({}) == "warn"
    assert level({"RAY_AUTH_MODE": "token"}) == "ok"


def test_doctor_compares_versions(tmp_path):
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(
        "# tested\ntorch==2.13.0\nray==2.60.0 ; python_version > '3'\nabsent==1\n"
    )
    installed = {"torch": "2.13.0+cpu", "ray": "2.59.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise doctor.PackageNotFoundError(name)
        return installed[name]

    (finding,) = doctor.packages(constraints, version)
    assert finding.level == "warn"
    assert finding.what == "other versions than tested: ray 2.59.0 (tested: 2.60.0)"
    installed["ray"] = "2.60.0"
    assert next(doctor.packages(constraints, version)).level == "ok"


@pytest.mark.parametrize(
    "error, code, said",
    [
        (RayDied(), 3, "error: Ray on this machine has died\n"),
        (Broken("[Errno 28] No space"), 1, "error: results cannot be kept: [Errno 28] No space\n"),
    ],
)
def test_what_ends_any_command_that_uses_ray(cli, monkeypatch, error, code, said):
    def ended(*_: object) -> None:
        raise error

    def at_once(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("raycl.verify.verify", ended)
    monkeypatch.setattr("raycl.cli.running.os._exit", at_once)
    assert cli("verify", "s") == (code, "", said)


def test_a_fault_stays_a_traceback(cli, monkeypatch):
    def wrong(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("raycl.verify.verify", wrong)
    with pytest.raises(ZeroDivisionError):
        cli("verify", "s")
