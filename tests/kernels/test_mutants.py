"""The contract notices planted faults: each mutant of each kernel must break it."""

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest
import torch

import erw.kernels
from erw.kernels import SPECS, Case
from erw.kernels._launch import INTERPRETED
from erw.kernels.contract import faults
from mutants import MUTANTS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = (Case(batch=2, tokens=18, width=72, heads=1), Case(batch=1, tokens=70, width=24, heads=1))
BY_NAME = {spec.name: spec for spec in SPECS}
# Files with kernels that an operation shares with another one: mutants may be in them too.
_SHARED = {"nt_xent_alignment": ("_contrast",), "nt_xent_in_image": ("_contrast",)}
_number = itertools.count()

pytestmark = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="needs a CUDA device or TRITON_INTERPRET=1")


def mutated(name: str, old: str, new: str, folder):
    """The public function of operation ``name`` from a copy of its file, and of the private files that it imports kernels
    from, in which ``old`` is replaced by ``new``."""
    number = next(_number)
    sources = {module: _source(module) for module in (*_SHARED.get(name, ()), name)}
    assert any(old in source for source in sources.values()), f"{name}.py does not hold {old!r}: the mutant is out of date"
    for module, source in sources.items():
        source = source.replace(old, new).replace('"erw::', f'"erw_mutant_{number}::')
        for other in sources:
            source = source.replace(f"from erw.kernels.{other} import", f"from erw_mutant_{number}_{other} import")
        copy = folder / f"{module}.py"
        copy.write_text(source, encoding="utf-8")
        module_spec = importlib.util.spec_from_file_location(f"erw_mutant_{number}_{module}", copy)
        loaded = importlib.util.module_from_spec(module_spec)
        sys.modules[module_spec.name] = loaded
        module_spec.loader.exec_module(loaded)
    return loaded.SPEC.op


def _source(module: str) -> str:
    return (Path(erw.kernels.__path__[0]) / f"{module}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name, planted in MUTANTS.items() for fault in planted], ids=lambda text: text
)
def test_a_planted_fault_breaks_the_contract(name, fault, tmp_path):
    spec, op = BY_NAME[name], mutated(name, *MUTANTS[name][fault], tmp_path)
    tried = itertools.product(spec.sizes(CASES), ("fp32", "mixed-fp16", "fp16"), spec.options.values())
    assert any(faults(spec, case, dtypes, options, DEVICE, op) for case, dtypes, options in tried)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_an_unchanged_copy_keeps_the_contract(spec, tmp_path):
    op, options = mutated(spec.name, "SPEC = Spec(", "SPEC = Spec(", tmp_path), next(iter(spec.options.values()))
    assert not [found for case in spec.sizes(CASES)[:2] for found in faults(spec, case, "mixed-fp16", options, DEVICE, op)]


def test_every_kernel_has_at_least_five_mutants():
    assert {spec.name for spec in SPECS} == set(MUTANTS) and all(len(planted) >= 5 for planted in MUTANTS.values())
