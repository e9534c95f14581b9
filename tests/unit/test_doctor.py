"""Each finding on machines that are in order and machines that are not."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from erw.cli import main
from erw.doctor import compute, machine, ranks, storage
from erw.doctor.checks import Finding, failed, found, lines

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(storage, "_BLOCKS", 1)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_a_machine_in_order(capsys, tmp_path):
    main(["doctor", "--out", str(tmp_path / "new" / "run")])
    said = capsys.readouterr().out
    names = [line.split()[1] for line in said.splitlines()]
    for name in ("versions", "GPU", "CPU", "compiler", "cache", "space", "storage", "attention", "kernels", "ranks"):
        assert name in names
    assert not any(line.startswith("bad") for line in said.splitlines()) and not (tmp_path / "new").exists()


def test_something_bad_is_exit_code_1(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(machine, "version", lambda package: {"torch": "2.10.0"}.get(package, "99.0"))
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert end.value.code == 1 and "bad   versions       torch 2.10.0, 2.11 or later is needed: install from" in said


def test_versions_floor_is_that_of_setup():
    text = (Path(__file__).resolve().parents[2] / "setup.py").read_text()
    for package, least in machine.FLOOR.items():
        assert f'"{package}>={".".join(map(str, least))}"' in text


def test_a_check_that_fails_is_a_finding():
    def a_check():
        raise OSError("no such driver\nmore")

    (finding,) = found(a_check)
    assert finding.verdict == "bad" and finding.line() == "bad   a check        OSError: no such driver"
    assert failed([finding]) and not failed([Finding("warn", "x", "y")])
    assert lines([finding], rank=3)[0].startswith("[rank 3] bad")


def test_a_driver_without_a_device(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert machine.accelerator().verdict == "bad"


def test_too_many_threads(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4096")
    assert "set OMP_NUM_THREADS=1" in machine.processor().line()


def test_secrets_are_named_not_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    assert "HF_TOKEN is set" in machine.secrets().text and "hf_secretsecret" not in machine.secrets().text


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage, "_speed", refuse)
    assert [f.verdict for f in storage.run_folder(tmp_path)][1] == "bad"


def test_shared_caches_are_told_apart(monkeypatch, tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"disk / ext4 rw 0 0\nserver:/home {tmp_path}/my\\040home nfs4 rw 0 0\n")
    (tmp_path / "my home").mkdir()
    assert storage.file_system(tmp_path / "my home", mounts) == "nfs4" and storage.file_system(Path("/"), mounts) == "ext4"
    monkeypatch.setenv("ERW_CACHE", str(tmp_path / "my home" / "cache"))
    monkeypatch.setattr(storage, "file_system", lambda path: "nfs4" if "my home" in str(path) else "ext4")
    (finding,) = storage.caches()
    assert finding.verdict == "warn" and "set ERW_CACHE to a disk of the machine's own" in finding.line()


def test_attention_and_kernels_on_a_cpu():
    assert "sdpa" in compute.attention(CPU).text and compute.kernels(CPU).verdict == "ok"


def test_broken_kernels_are_named(monkeypatch):
    monkeypatch.setattr(compute, "broken", lambda *_: ["adaln_modulate: out is 3 roundings off"])
    finding = compute.kernels(torch.device("cuda", 0))
    assert finding.verdict == "warn" and "adaln_modulate" in finding.text and "falls back" in finding.mend


def test_ranks_that_do_not_meet(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "_PATIENCE", ranks.timedelta(seconds=1))
    (finding,) = ranks.meet(CPU)
    assert finding.verdict == "bad" and "rank 1 of 2 does not meet the others" in finding.text
    assert "127.0.0.1:1" in finding.mend and not dist.is_initialized() and os.environ["RANK"] == "1"
