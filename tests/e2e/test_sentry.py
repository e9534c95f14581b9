"""A CPU's fastest step beside the compiled reference, against a record: whoever slows it down hears of it."""

import os
import shutil
import subprocess
import sys

import pytest

from erw.bench._record import RESULTS

TOLERANCE = 0.4  # wide: another CPU than the record's, and other tests beside it


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler: torch compiles for CPUs with it")
def test_the_step_keeps_its_speed_over_the_compiled_reference(tmp_path):
    (record,) = (RESULTS / "sentry").glob("*.json")
    command = ["-m", "erw.bench.step", "--check", str(record), "--threads", "1", "--rounds", "3", "--out", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *command, "--tolerance", str(TOLERANCE)], capture_output=True, text=True,
                          env=environment, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
