"""The house's floors: imports point down. A rule of the architecture, written as a test."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A file's floor is that of the longest prefix of its module name. It may import from its own floor and below.
FLOORS = [
    {"erw.kernels"},
    {"erw.errors", "erw.files", "erw.settings", "erw.types", "erw.rng", "erw.ops", "erw.cache", "erw.clock",
     "erw.environment", "erw.devices", "erw.redact"},
    {"erw.models", "erw.objectives", "erw.latents", "erw.align", "erw.flops", "erw.data", "erw.teachers"},
    {"erw.optim", "erw.samplers", "erw.evaluate", "erw.engine", "erw.step", "erw.config", "erw.checkpoint",
     "erw.public", "erw.convert", "erw.init_from",
     "erw.telemetry", "erw.progress", "erw.gauges", "erw.boards", "erw.build", "erw.settle", "erw.sample",
     "erw.prepare", "erw.repeatable"},
    {"erw.run", "erw.guard", "erw.evaluate.running", "erw.plan", "erw.presets", "erw.options", "erw.profile", "erw.probe",
     "erw.report", "erw.card", "erw.exported", "erw.doctor", "erw.tune"},
    {"train_ds", "erw.cli", "erw.commands", "erw.bench"},
]  # fmt: skip


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] in ("kernels", "bench"):
        parts = ("erw", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int | None:
    best = None
    for floor, names in enumerate(FLOORS):
        for name in names:
            if (module == name or module.startswith(name + ".")) and (best is None or len(name) > best[0]):
                best = (len(name), floor)
    return best[1] if best else None


def imports_of(path: Path, everywhere: bool = True) -> set[str]:
    """Modules that a file imports, inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


SOURCES = [p for folder in ("erw", "kernels", "bench") for p in (ROOT / folder).rglob("*.py")] + [ROOT / "train_ds.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    module = module_of(path)
    if module == "erw":
        return
    mine = floor_of(module)
    assert mine is not None, f"{module} has no floor: give it one in FLOORS"
    above = {name for name in imports_of(path) if (floor_of(name) or 0) > mine}
    assert not above, f"{module} (floor {mine}) imports from above: {above}"


def test_the_rule_can_fail():
    assert floor_of("erw.run") > floor_of("erw.models.sit") > floor_of("erw.errors") > floor_of("erw.kernels.any")
    assert floor_of("erw.evaluate.running") > floor_of("erw.evaluate.frechet")


def test_only_the_engine_imports_deepspeed():
    users = {module_of(p) for p in SOURCES if any(n.split(".")[0] == "deepspeed" for n in imports_of(p))}
    assert users and all(name.startswith("erw.engine.") for name in users), users


def test_kernels_stand_alone():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not any(n == "erw" or (n.startswith("erw.") and not n.startswith("erw.kernels")) for n in imports_of(path))


def test_hugging_faces_kernels_imports_beside_ours_from_the_root():
    code = (
        "import erw, kernels, erw.kernels;"
        "assert hasattr(kernels, 'get_kernel'), kernels.__file__;"
        "assert erw.kernels.__file__.endswith('kernels/__init__.py') and erw.kernels.__file__ != kernels.__file__"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_and_settings_do_not_wait_for_deepspeed():
    code = "import sys, erw.options; assert 'deepspeed' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_gpu_benchmark_needs_torch_and_timm_alone():
    blocked = "('dacite', 'deepspeed', 'sklearn', 'scipy', 'matplotlib', 'diffusers', 'torchmetrics', 'pydantic', 'hjson')"
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import erw.bench.step, erw.bench.ours"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_files_can_be_read_in_one_sitting():
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 300}
    assert not long, long
