"""The files in sweeps/cluster, each checked by what reads it."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose
from pydantic import BaseModel, ConfigDict
from ray._private import ray_constants
from ray._raylet import Config
from ray.autoscaler._private.kuberay import autoscaling_config
from ray.autoscaler._private.util import prepare_config, validate_config

import raycl
from tests.cluster.nodes import Nodes, nodes, why_not
from tests.faults.conftest import Lab
from tests.waiting import until

ROOT = Path(__file__).parents[2]
HERE = ROOT / "sweeps" / "cluster"
BIN = Path(sys.executable).parent
PINNED = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)


def load(name: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((HERE / name).read_text())
    return data


# ---------------------------------------------------------------------- ray up


@pytest.mark.parametrize("name, workers", [("ray-up-local.yml", 2), ("ray-up-aws.yml", 4)])
def test_ray_up_accepts(name: str, workers: int) -> None:
    """By the checks that `ray up` makes before it touches a machine."""
    config = prepare_config(load(name))
    validate_config(config)
    assert config["max_workers"] == workers
    with pytest.raises(Exception, match="cluster_nam"):
        validate_config(prepare_config(load(name)) | {"cluster_nam": "x"})


def test_the_old_autoscaler_starts_all_machines() -> None:
    """The new one of Ray 2.60 left one out when this file was tried on three machines."""
    *_, start = load("ray-up-local.yml")["head_start_ray_commands"]
    (name,) = re.findall(r"RAY_(\w+)=0", start)
    assert hasattr(Config, name), "Ray calls it otherwise"


def test_the_head_of_a_cloud_runs_no_trials() -> None:
    head = load("ray-up-aws.yml")["available_node_types"]["head"]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert load("rayjob.yml")["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] == {
        "num-cpus": "0"
    }


# ---------------------------------------------------------------------- Kubernetes


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AuthOptions(Strict):
    mode: Literal["disabled", "token"]


class Head(Strict):
    rayStartParams: dict[str, str]
    template: dict[str, Any]


class Worker(Head):
    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int


class Cluster(Strict):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool
    headGroupSpec: Head
    workerGroupSpecs: list[Worker]


class JobSpec(Strict):
    entrypoint: str
    runtimeEnvYAML: str
    backoffLimit: int
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    rayClusterSpec: Cluster


class RayJob(Strict):
    """The fields of KubeRay's ray.io/v1 that we use, with their types."""

    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: dict[str, str]
    spec: JobSpec


def test_kuberay_knows_the_fields() -> None:
    job = RayJob.model_validate(load("rayjob.yml"))
    cluster = job.spec.rayClusterSpec
    assert cluster.rayVersion == PINNED["ray"]
    for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group.template}
        kubernetes_validate.validate(pod, "1.34", strict=True)
        pod["spec"] = group.template["spec"] | {"terminationGracePeriod": 1}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(pod, "1.34", strict=True)
    *command, file = job.spec.entrypoint.split()
    assert command == ["python", "-m", "raycl", "run"]
    assert (ROOT / Path(file).relative_to("/opt/raycl")).is_file()


def test_ray_reads_the_resources_of_the_groups() -> None:
    """By the reader that Ray's own autoscaler uses inside KubeRay."""
    job = load("rayjob.yml")
    cluster = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "c", "namespace": "n"},
        "spec": job["spec"]["rayClusterSpec"],
    }
    config = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)
    types = config["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu"]["resources"] == {"CPU": 8, "GPU": 1, "memory": 32 * 2**30}
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (1, 4)


def drain_of(group: dict[str, Any]) -> tuple[str, int, int]:
    """Variable by which a pod waits after SIGTERM, for how long, and when it is killed."""
    spec = group["template"]["spec"]
    (variable,) = spec["containers"][0]["env"]
    return variable["name"], int(variable["value"]), spec["terminationGracePeriodSeconds"]


def test_a_pod_has_time_to_save() -> None:
    job = load("rayjob.yml")["spec"]
    env = yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]
    assert env["RAYCL_RUNS"].startswith("/shared/")
    cluster = job["rayClusterSpec"]
    wait = int(env["RAY_JOB_STOP_WAIT_TIME_S"])
    assert wait >= 130, "what raycl submit gives a driver"
    for group, least in ((cluster["headGroupSpec"], wait), (cluster["workerGroupSpecs"][0], 60)):
        name, seconds, killed = drain_of(group)
        assert hasattr(ray_constants, name), "Ray calls it otherwise"
        assert least <= seconds < killed


@pytest.mark.slow
def test_pods_save_before_they_go(lab: Lab) -> None:
    """The pod as KubeRay runs it: the entrypoint as a job, SIGTERM to the first process."""
    if reason := why_not():
        pytest.skip(reason)
    job = load("rayjob.yml")["spec"]
    cluster = job["rayClusterSpec"]
    method = {"name": f"{lab.path}/fragile.py:Fragile", "sleep": 0.3}
    sweep = lab.sweep(
        methods=[method],
        train={"epochs": 30, "batch_size": 16, "lr": 0.05},
        seeds=2,
        checkpoint={"every_s": 10_000},
        failures={"max_retries": 0},
        storage=str(lab.path / "shared"),
    )
    *command, _ = job["entrypoint"].split()
    variables = yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]
    variables |= {"RAYCL_RUNS": str(lab.runs), "RAYCL_DATA": str(lab.path)}
    del variables["MLFLOW_TRACKING_URI"]
    pods = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    pods |= {"RAYCL_SCENE": str(lab.path)}
    with nodes(lab.path / "local") as rig:
        rig.environment = lambda: Nodes.environment() | pods
        name, seconds, _ = drain_of(cluster["headGroupSpec"])
        options = ["--include-dashboard=true", "--dashboard-host=0.0.0.0"]
        rig.start(0, *options, **{name: str(seconds)})
        name, seconds, _ = drain_of(cluster["workerGroupSpecs"][0])
        for _ in range(2):
            rig.start(1, **{name: str(seconds)})
        rig.wait(3)

        def ray_job(*arguments: str) -> str:
            where = ["--address", f"http://{rig.head.address}:8265"]
            words = [str(BIN / "ray"), "job", arguments[0], *where, *arguments[1:]]
            done = subprocess.run(
                rig.head.command(*words), env=rig.environment(), capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        submit = ["--submission-id", "sweep", "--no-wait"]
        submit += ["--runtime-env-json", json.dumps({"env_vars": variables})]
        ray_job("submit", *submit, "--", *command, str(sweep))
        until(lambda: len({line[2] for line in lab.traced()}) == 2)

        # the node of a worker is drained
        (victim,) = [node for node in rig.nodes if node.network == lab.traced()[0][2]]
        victim.ray.terminate()
        until(lambda: lab.checkpoints_in("shared"))
        until(lambda: victim.ray.poll() is not None)
        until(lambda: "continues from" in ray_job("logs", "sweep"))
        assert "has saved, for its node is being drained" in ray_job("logs", "sweep")

        # kubectl delete: the operator stops the job, and all pods get their signal at once
        before = newest(lab.checkpoints_in("shared"))
        ray_job("stop", "--no-wait", "sweep")
        for node in rig.nodes:
            node.ray.terminate()
        until(lambda: all(node.ray.poll() is not None for node in rig.nodes))
    after = newest(lab.checkpoints_in("shared"))
    assert any(after[trial] > before[trial] for trial in before), "saved between two tasks"
    assert len(lab.outcomes()) < 2


# ---------------------------------------------------------------------- compose, Dockerfile


def test_compose_is_valid() -> None:
    text = (HERE / "compose.yml").read_text()
    PyCompose.from_yaml(text).validate()
    for word, typo in (("ports:", "prots:"), ("service_healthy", "service_helthy"), ("5s", "5q")):
        with pytest.raises(ValueError, match=typo.rstrip(":")[-1]):
            PyCompose.from_yaml(text.replace(word, typo)).validate()
    data = load("compose.yml")
    for service in data["services"].values():
        assert set(service.get("depends_on", {})) <= set(data["services"])
        assert {v.partition(":")[0] for v in service.get("volumes", [])} <= set(data["volumes"])
    command = data["services"]["mlflow"]["command"]
    assert "--workers=1" in command
    for package in ("mlflow", "psycopg2-binary", "boto3"):
        install = data["services"]["mlflow"]["build"]["dockerfile_inline"]
        assert f"{package}=={PINNED[package]}" in install


def test_no_password_is_in_the_files() -> None:
    text = (HERE / "compose.yml").read_text()
    found = re.findall(r"(?:PASSWORD|SECRET\w*|KEY\w*): *(.+)", text)
    assert len(found) >= 5
    assert all(re.fullmatch(r"\$\{\w+(:\?[^}]+)?\}", secret) for secret in found), "no default"


def test_dockerfile() -> None:
    path = HERE / "Dockerfile"
    done = subprocess.run([BIN / "hadolint", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for line in path.read_text().splitlines():
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
    text = path.read_text()
    assert "--compile-bytecode -c constraints.txt '.[cluster]'" in text
    for program in ("rsync", "openssh-client", "wget"):  # of ray up, and of KubeRay's probes
        assert re.search(rf"apt-get install .*\b{program}\b", text)
    assert "ENV HOME=/home/ray" in text, "ray up asks the image for it"


def test_images_have_the_version() -> None:
    """A node that keeps the image of an earlier version would run other files than the driver."""
    for name in ("Dockerfile", "rayjob.yml", "ray-up-aws.yml"):
        tags = re.findall(r"example/raycl:(\S+)", (HERE / name).read_text())
        assert set(tags) == {raycl.__version__}, name


# ---------------------------------------------------------------------- Slurm


def test_shell_script() -> None:
    done = subprocess.run([BIN / "shellcheck", HERE / "slurm.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert os.access(HERE / "slurm.sh", os.X_OK)


SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo localhost; echo localhost; else echo "$@" > "$ASKED"; fi
"""


@pytest.mark.slow
def test_slurm_script_saves_queues_itself_and_finishes(lab: Lab) -> None:
    """The script on this machine, by an srun that runs things here: two Ray nodes, a real sweep."""
    commands = lab.path / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    slow = [{"name": "fragile.py:Fragile", "sleep": 0.5}]
    train = {"epochs": 8, "batch_size": 16, "lr": 0.05}
    sweep = lab.sweep(methods=slow, seeds=2, train=train)
    job = os.getpid() * 10
    environment = os.environ | lab.environment
    environment |= {
        "PATH": f"{commands}:{BIN}:{os.environ['PATH']}",
        "HOME": str(lab.path),
        "ASKED": str(lab.path / "asked"),
        "SLURM_JOB_NODELIST": "a,b",
        "SLURM_CPUS_PER_TASK": "1",
    }
    environment.pop("RAY_ADDRESS", None)

    def submit(number: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["bash", HERE / "slurm.sh", sweep.name],
            cwd=lab.path,
            env=environment | {"SLURM_JOB_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        lab.processes.append(process)
        return process

    asked = lab.path / "asked"
    first = submit(job)
    until(lambda: len(lab.checkpoints()) >= 2, first)
    os.kill(first.pid, signal.SIGTERM)  # what Slurm sends two minutes before the end
    output, _ = first.communicate()
    assert first.returncode == 130, output
    assert asked.read_text() == f"requeue {job}\n"
    assert not running(job), "before the job is queued again, Ray has ended"
    asked.unlink()

    second = submit(job + 1)
    before = newest(lab.checkpoints())
    until(lambda: all(newest(lab.checkpoints())[k] > before[k] for k in before), second)
    os.kill(second.pid, signal.SIGINT)  # a user's wish that it ends
    output, _ = second.communicate()
    assert second.returncode == 130, output
    assert output.count("continues from") == 2
    assert not asked.exists()
    assert not lab.outcomes()

    third = submit(job + 2)
    output, _ = third.communicate()
    assert third.returncode == 0, output
    assert len(lab.outcomes()) == 2
    assert not asked.exists()
    assert not running(job + 1) + running(job + 2)
    assert not list(Path("/tmp").glob(f"raycl-{job // 10}*"))


def newest(checkpoints: list[Path]) -> dict[str, str]:
    """The newest checkpoint of each trial."""
    return {path.parent.name: path.name for path in sorted(checkpoints)}


def running(job: int) -> str:
    """Processes of a job's Ray, a few seconds after it ended."""
    for _ in range(20):
        done = subprocess.run(["pgrep", "-fa", f"/tmp/raycl-{job}"], capture_output=True, text=True)
        if not done.stdout:
            return ""
        time.sleep(1)
    return done.stdout


def test_templates_are_not_sweeps() -> None:
    assert not list(HERE.glob("*.yaml"))
    for path in HERE.glob("*.yml"):
        head = path.read_text().split("\n\n")[0]
        assert head.startswith("# ")
        assert "Change" in head or path.name == "compose.yml"
