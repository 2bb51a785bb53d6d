"""Launch scripts: a dry run plans and prints without reaching anybody, and what is sent is what was printed."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLURM, TPU = (str(ROOT / "train" / name) for name in ("launch_slurm.sh", "launch_tpu_pod.sh"))
SETTINGS = ["configs/human_choice.yaml", "--backbone.dtype", "bfloat16", "--train.batch", "16"]


class Shell:
    """Runs a script with commands that only write down how they were called."""

    def __init__(self, folder: Path):
        self.folder, self.calls = folder / "bin", folder / "calls"
        self.folder.mkdir()
        for name in ("sbatch", "scontrol", "gcloud"):
            self.stub(name, "cat")
        self.stub("srun", "exit 130")

    def stub(self, name: str, ending: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>{shlex.quote(str(self.calls))}\n{ending}\n')
        path.chmod(0o755)

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}",
            "FIXATE": f"{sys.executable} -m fixate_jax",
            "COLUMNS": "120",
            **variables,
        }
        return subprocess.run(
            arguments, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    @property
    def called(self) -> list[str]:
        """The calls so far, one a line."""
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_a_dry_run_for_slurm(shell: Shell) -> None:
    topology = ["--nodes", "2", "--gpus", "8", "--model", "tiny-qwen3-vl", "--account", "lab", "--run", "runs/my run"]
    done = shell(SLURM, *topology, "--dry-run", "--", *SETTINGS, "--train.mesh", "2", "8", "1")
    assert done.returncode == 0, done.stderr
    assert shell.called == []
    assert "tiny-qwen3-vl, 0.002 billion parameters" in done.stdout
    assert "data 2 × fsdp 8 × tensor 1 = 16 devices of 80 GB" in done.stdout
    assert "fits: " in done.stdout and "Operations of a step" in done.stdout
    command = next(line for line in done.stdout.splitlines() if line.startswith("sbatch "))
    assert {"--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--account=lab"} <= set(command.split())
    step = next(line for line in done.stdout.splitlines() if line.startswith("srun "))
    words = shlex.split(step.split("||")[0])
    assert words[5:6] == ["train"] and words[-2:] == ["--run", "runs/my run"]
    assert words[6 : 6 + len(SETTINGS)] == SETTINGS


def test_a_job_is_submitted_as_printed_and_goes_on_after_its_limit(shell: Shell) -> None:
    topology = ["--nodes", "2", "--gpus", "4"]
    shell.stub("fixate", "true")
    settings = [*SETTINGS, "--train.mesh", "1", "8", "1"]
    dry = shell(SLURM, *topology, "--dry-run", "--", *settings, FIXATE="fixate")
    (planned,) = shell.called
    assert planned.startswith("fixate plan configs/human_choice.yaml") and planned.endswith("--devices 8")
    shell.calls.unlink()
    sent = shell(SLURM, *topology, "--", *settings, FIXATE="fixate")
    assert sent.returncode == 0, sent.stderr
    command, job = dry.stdout[dry.stdout.index("sbatch ") :].split(" <<JOB\n")
    assert shell.called == [command]
    assert sent.stdout.strip() == job.removesuffix("JOB\n").strip()
    (script := shell.folder / "job").write_text(sent.stdout)
    ended = shell("bash", str(script), SLURM_JOB_ID="77")
    assert ended.returncode == 130
    assert shell.called[-1] == "scontrol requeue 77"
    shell.stub("srun", "exit 2")
    assert shell("bash", str(script), SLURM_JOB_ID="77").returncode == 2
    assert sum(call.startswith("scontrol") for call in shell.called) == 1


def test_a_dry_run_for_a_pod(shell: Shell) -> None:
    slice_ = ["--name", "pod", "--zone", "us-east5-a", "--type", "v6e-16", "--directory", "my study"]
    settings = [*SETTINGS, "--train.mesh", "1", "16", "1"]
    shell.stub("fixate", "true")
    done = shell(TPU, *slice_, "--model", "tiny-internvl", "--dry-run", "--", *settings, FIXATE="fixate")
    assert done.returncode == 0, done.stderr
    planned = " ".join(["fixate plan", *settings, "--models tiny-internvl --device tpu-v6e --devices 16"])
    assert shell.called == [planned]
    shell.calls.unlink()
    words = shlex.split(done.stdout.strip().splitlines()[-1])
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"] and "--worker=all" in words
    there = shlex.split(words[-1].removeprefix("--command="))
    assert there[:3] == ["cd", "my study", "&&"] and there[4:] == [
        "train",
        *settings,
        "--run",
        "runs/tpu",
        "--distributed",
    ]
    assert shell(TPU, *slice_, "--", *settings, FIXATE="fixate").returncode == 0
    assert shell.called == [" ".join(words)]


def test_a_host_of_a_pod_runs_its_process(shell: Shell) -> None:
    shell.stub("fixate", "pwd")
    done = shell(TPU, "--here", "--directory", "docs", "--", "configs/demo.yaml", FIXATE="fixate")
    assert done.returncode == 0, done.stderr
    assert shell.called == ["fixate train configs/demo.yaml --run runs/tpu --distributed"]
    assert done.stdout.strip() == str(ROOT / "docs")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([SLURM, "--dry-run", "--model", "qwen3-vl-2b", "--", "configs/demo.yaml"], 2, "there are 8; all of them"),
        ([SLURM, "--node", "2"], 2, "--node: no such option"),
        ([TPU, "--dry-run", "--", "configs/demo.yaml"], 2, "give --name and --zone of the slice, or --here"),
        ([TPU, "--name", "pod", "--dry-run"], 2, "give --name and --zone"),
        ([TPU, "--here", "--type", "v9-8", "--dry-run"], 2, "--type v9-8: v4-N"),
        ([TPU, "--here", "--type", "v4", "--dry-run"], 2, "--type v4: v4-N"),
    ],
)
def test_mistakes_are_said_and_nobody_is_reached(shell: Shell, arguments: list[str], status: int, message: str) -> None:
    done = shell(*arguments)
    assert done.returncode == status
    assert message in " ".join(done.stderr.split())
    assert shell.called == []


def test_a_plan_that_does_not_fit_fails(shell: Shell) -> None:
    shell.stub("fixate", "exit 1")
    where = ["--here", "--type", "v5litepod-4", "--dry-run"]
    done = shell(TPU, *where, "--", "--train.mesh", "1", "4", "1", FIXATE="fixate")
    assert done.returncode == 1
    assert shell.called == ["fixate plan --train.mesh 1 4 1 --device tpu-v5e --devices 4"]
    assert "fixate train --train.mesh" in done.stdout
