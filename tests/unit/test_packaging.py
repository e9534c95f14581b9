"""A wheel holds everything under one import name."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_wheel_holds_the_folders_beside_erw(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    names = set(zipfile.ZipFile(next(tmp_path.glob("erw-*.whl"))).namelist())
    assert {"train_ds.py", "erw/kernels/__init__.py", "erw/bench/gpu.py", "erw/ds_configs/zero3.json"} <= names
    assert {"erw/report/page.html", "erw/report/page.css", "erw/commands/import.py"} <= names
    assert not any(name.startswith(("kernels/", "bench/", "tests/", "ds_configs/")) for name in names)
