"""Machine code of every kernel for three chips, compiled ahead of time: no spills, no atomics, 128-bit accesses.

In child processes, as this one has Triton's interpreter on. XL's width here; ``ERW_SURVEY=full`` compiles for every size, as
``python -m erw.bench.kernel_code`` does, and compares the table in the docs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

from erw.bench._code_table import caption, section_name
from erw.bench._section import section
from erw.bench.kernel_code import NARROW, TARGETS
from erw.kernels import SPECS
from erw.models.sit import SIZES
from launch import environment

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "kernels.md"
FULL = os.environ.get("ERW_SURVEY") == "full"
SIZES_HERE = tuple(SIZES) if FULL else ("XL",)
WIDTHS = {SIZES[size][1] for size in SIZES_HERE}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)


def _compiling(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """A child without the interpreter, whose cache is empty."""
    env = environment(TRITON_CACHE_DIR=str(folder / "cache"), OMP_NUM_THREADS="1")
    env.pop("TRITON_INTERPRET", None)
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> tuple[list[dict], str]:
    """Everything that the command found for ``SIZES_HERE``, and its table."""
    folder = tmp_path_factory.mktemp("code")
    processes = str(min(2, os.cpu_count() or 1))
    command = ["-m", "erw.bench.kernel_code", "--sizes", ",".join(SIZES_HERE), "--processes", processes]
    done = _compiling(folder, *command, "--json", str(folder / "found"))
    assert (folder / "found").exists(), done.stderr
    return json.loads((folder / "found").read_text(encoding="utf-8")), done.stdout


@pytest.fixture(scope="module")
def checks(tmp_path_factory) -> dict:
    """See `code_checks`."""
    done = _compiling(tmp_path_factory.mktemp("checks"), "tests/support/code_checks.py")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@each_spec
def test_every_configuration_compiles_to_good_code(spec, survey):
    mine = [found for found in survey[0] if found["operation"] == spec.name]
    faulty = {
        f"{f['code']['kernel']} {f['dtypes']} width {f['width']} sm_{f['code']['target']}: {'; '.join(f['faults'])}"
        for f in mine
        if f["faults"]
    }
    assert not faulty, "\n".join(sorted(faulty))
    for target in TARGETS:
        assert {f["width"] for f in mine if f["code"]["target"] == target} == WIDTHS


def test_reasons_for_narrow_accesses_are_needed(survey):
    narrow = {name for found in survey[0] for name in found["narrow"] if found["code"]["wide"]}
    assert set(NARROW) <= narrow


@pytest.mark.parametrize("version", ["3.6", "3.8"])
def test_the_docs_have_a_table_of_every_kernel(version):
    table = section(DOCS.read_text(encoding="utf-8"), section_name(version), DOCS.name)
    assert all(spec.name in table for spec in SPECS), f"python -m erw.bench.kernel_code --write docs/{DOCS.name}"


@pytest.mark.skipif(not FULL, reason="the docs' table is of every size: set ERW_SURVEY=full, some five minutes more")
def test_the_table_in_the_docs_is_this_one(survey):
    table = section(DOCS.read_text(encoding="utf-8"), section_name(triton.__version__), DOCS.name)
    assert table.startswith(caption([], triton.__version__, torch.__version__).partition(":")[0])
    assert survey[1].strip() in table, f"python -m erw.bench.kernel_code --write docs/{DOCS.name}"


def test_the_survey_can_fail(checks):
    for target in map(str, TARGETS):
        found = {name.partition(".")[2]: "; ".join(by_target[target]) for name, by_target in checks["faults"].items()}
        assert found["good"] == "" and found["narrow"] == "loads below 128 bits"
        assert "atomics" in found["atomic"] and "spills" in found["spilling"] and "shared memory" in found["greedy"]


def test_other_batches_make_no_other_configurations(checks):
    assert not checks["unreached"]
