"""Scripts of docs/clusters.md, run with stand-ins for the programs that a cluster has; the container file, read."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(ROOT.glob("scripts/*.s*"))
INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "ENTRYPOINT"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_bash_and_executable(path):
    assert subprocess.run(["bash", "-n", path], capture_output=True, check=False).returncode == 0
    assert os.access(path, os.X_OK) and path.read_text().startswith("#!/bin/bash\n")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder of stand-ins first in PATH, each of which notes how it was called; the checkout's copy to run in."""
    programs = tmp_path / "bin"
    programs.mkdir()

    def stand_in(name: str, body: str = "") -> None:
        file = programs / name
        file.write_text(f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/calls\n{body}\n')
        file.chmod(0o755)

    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    (tmp_path / "calls").write_text("")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("USER", "somebody")

    def run(script: str, *arguments: str, **env: str) -> tuple[int, str]:
        done = subprocess.run(["bash", ROOT / "scripts" / script, *arguments], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, **env}, check=False)  # fmt: skip
        return done.returncode, (tmp_path / "calls").read_text() + done.stderr

    return stand_in, run


SLURM = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node-[0-1]", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
         "SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8"}  # fmt: skip


@pytest.mark.parametrize(("code", "requeued", "restarts"), [
    (0, False, 0), (75, True, 0), (69, True, 3), (2, False, 0), (75, False, 50),
])  # fmt: skip
def test_slurm_requeues_what_can_go_on(cluster, code, requeued, restarts):
    stand_in, run = cluster
    stand_in("scontrol", '[[ $1 == show ]] && printf "node-0\\nnode-1\\n"')
    stand_in("srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"')
    stand_in("erw")
    stand_in(
        "python",
        f'echo "ranks $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT" >> calls; exit {code}',
    )
    returned, calls = run("slurm.sbatch", "digits-sit", "--out", "a run", **SLURM, SLURM_RESTART_COUNT=str(restarts))
    assert returned == (0 if requeued else code), calls
    assert ("scontrol requeue 123456" in calls) == requeued
    assert "erw doctor --out runs" in calls and "python train_ds.py digits-sit --out a run --train.resume auto" in calls
    assert "ranks 3 1 16 8 at node-0:23456" in calls


def test_slurm_does_not_train_where_the_doctor_refuses(cluster):
    stand_in, run = cluster
    stand_in("scontrol", "echo node-0")
    stand_in("srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"')
    stand_in("erw", "exit 1")
    stand_in("python")
    returned, calls = run("slurm.sbatch", "digits-sit", **SLURM)
    assert returned == 1 and "train_ds" not in calls and "requeue" not in calls


def test_torchrun_restarts_and_goes_on(cluster):
    stand_in, run = cluster
    stand_in("torchrun", 'echo "caches $ERW_CACHE" >> calls')
    returned, calls = run("torchrun.sh", "2", "8", "node-0:29400", "digits-sit", "--seed", "1", ERW_CACHE="/disk/erw")
    assert returned == 0 and "caches /disk/erw" in calls
    assert "torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 10 --rdzv-backend c10d --rdzv-endpoint node-0:29400" in calls
    assert calls.rstrip().endswith("caches /disk/erw") and "train_ds.py digits-sit --seed 1 --train.resume auto" in calls
    assert run("torchrun.sh", "2")[0] == 2


def test_deepspeeds_hostfile_is_one():
    rows = [row for row in (ROOT / "scripts" / "hostfile").read_text().splitlines() if row and not row.startswith("#")]
    assert rows and all(len(row.split()) == 2 and row.split()[1].startswith("slots=") for row in rows)


def test_the_containerfile_names_what_is_there():
    text = (ROOT / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    words = [line.split(None, 1) for line in lines]
    assert words[0][0] == "FROM" and ":" in words[0][1] and not words[0][1].endswith("latest")
    assert {word for word, _ in words} <= INSTRUCTIONS
    for word, rest in words:
        if word == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1])
        if word == "RUN":
            assert subprocess.run(["bash", "-nc", rest], capture_output=True, check=False).returncode == 0
            assert "sudo" not in shlex.split(rest)
    assert any(word == "USER" and rest != "root" for word, rest in words)
    ignored = (ROOT / ".containerignore").read_text().split()
    assert ".git" in ignored and "runs" in ignored
