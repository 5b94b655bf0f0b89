"""The files in sweeps/cluster, each checked by what reads it."""

from __future__ import annotations

import os
import re
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
from ray.autoscaler._private.kuberay import autoscaling_config
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.faults.conftest import Lab

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
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (0, 4)


def test_a_pod_has_time_to_save() -> None:
    job = load("rayjob.yml")["spec"]
    env = yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]
    assert env["RAYCL_RUNS"].startswith("/shared/")
    head = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["terminationGracePeriodSeconds"] > int(env["RAY_JOB_STOP_WAIT_TIME_S"]) >= 130
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    *_, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    command, _, nap = script.partition(" && sleep ")
    assert int(nap) < pod["terminationGracePeriodSeconds"]
    options = re.findall(r"--[a-z-]+", command)
    done = subprocess.run([BIN / "ray", "drain-node", "--help"], capture_output=True, text=True)
    assert command.startswith("ray drain-node ")
    assert len(options) == 3
    assert all(option in done.stdout for option in options)
    assert "DRAIN_NODE_REASON_PREEMPTION" in done.stdout
    assert "current node" in done.stdout, "a pod need not know its node's id"


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
    secrets = re.findall(r"(?:PASSWORD|SECRET\w*|KEY\w*): *(\S+)", text)
    assert len(secrets) >= 5
    assert all(secret.startswith("${") for secret in secrets)


def test_dockerfile() -> None:
    path = HERE / "Dockerfile"
    done = subprocess.run([BIN / "hadolint", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for line in path.read_text().splitlines():
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
    assert "--compile-bytecode -c constraints.txt '.[cluster]'" in path.read_text()


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
@pytest.mark.timeout(600)
def test_slurm_script_saves_queues_itself_and_finishes(lab: Lab) -> None:
    """On this machine, by an srun that runs things here: two Ray nodes and a real sweep."""
    commands = lab.path / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    slow = [{"name": "fragile.py:Fragile", "sleep": 0.5}]
    sweep = lab.sweep(methods=slow, seeds=2)
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

    first = submit(job)
    lab.wait_for(lambda: len(lab.checkpoints()) >= 2, first)
    os.kill(first.pid, signal.SIGTERM)  # what Slurm sends two minutes before the end
    output, _ = first.communicate(timeout=200)
    assert first.returncode == 130, output
    assert (lab.path / "asked").read_text() == f"requeue {job}\n"
    assert not lab.outcomes()
    assert not running(job)

    (lab.path / "asked").unlink()
    second = submit(job + 1)
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 0, output
    assert output.count("continues from") == 2
    assert not (lab.path / "asked").exists()
    assert not running(job + 1)
    assert not list(Path("/tmp").glob(f"raycl-{job}*"))
    assert not list(lab.path.glob(".raycl-token-*"))


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
