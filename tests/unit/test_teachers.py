"""The registry of teachers: names, FLOPs, identities, the page."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm

from erw.bench import teachers as page
from erw.bench._section import section
from erw.errors import UserError
from erw.teachers import TEACHERS, TeacherConfig, load_teacher, teacher_flops, teacher_specs
from erw.teachers import timm as teachers
from erw.teachers.names import SHORT_NAMES
from teachers import CPU


def test_the_table_of_names_is_timms(monkeypatch):
    """Width, patch and class token of every name, on the meta device, a block deep."""
    for name, known in SHORT_NAMES.items():
        model = teachers._on_meta(replace(known, options=known.options | {"depth": 1}), known.patch * 16)
        assert (model.num_features, tuple(model.patch_embed.patch_size)) == (known.width, (known.patch,) * 2), name
        assert teachers._has_class_token(model) == known.class_token, name
        assert model.patch_embed.grid_size == (16, 16), name
        assert known.on_hub == ("mocov3" not in name) and (not known.on_hub or timm.is_model_pretrained(known.model)), name


def test_specs_need_no_timm():
    code = (
        "import sys; from erw.presets import preset; preset('in256-repa-xl2').check();"
        "from erw.teachers import *; print(teacher_specs(TeacherConfig(name=','.join(TEACHERS)), 16)[-1]);"
        "assert 'timm' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("timm:resnet18", "timm's resnet18 is no vision transformer that gives a square of patch tokens"),
        ("timm:hiera_tiny_224.mae", "is no vision transformer"),
        ("timm:vit_base_patch14_dinov4", "timm has no model vit_base_patch14_dinov4"),
        ("timm:", "timm has no model"),
        ("dinov2", "'dinov2' is not known; did you mean dinov2-"),
    ],
)
def test_names_that_are_no_teachers(name, says):
    with pytest.raises(UserError, match=says) as refusal:
        teacher_specs(TeacherConfig(name=name))
    assert "\n" not in str(refusal.value)


def test_flops_are_counted_on_the_graph_that_runs():
    """DINOv2-B at 224 pixels by hand: 24 D^2 + 4 N D a token and block, 2 * 3 * 14^2 * D a patch."""
    width, tokens = 768, 257
    by_hand = 12 * tokens * (24 * width**2 + 4 * tokens * width) + 2 * 256 * 3 * 14**2 * width
    assert teacher_flops("dinov2-b") == pytest.approx(by_hand, rel=1e-3)
    assert teacher_flops("dinov2-b", 32) > 4 * by_hand  # attention grows with the square
    assert teacher_flops("digits-contrastive") == load_teacher("digits-contrastive", CPU).flops > 0


def test_identities_are_json_and_fit_a_manifest():
    for name in ("digits-contrastive", "efficientnet-lite0"):
        identity = json.loads(json.dumps(load_teacher(name, CPU).identity()))
        assert identity["name"] == name in TEACHERS and len(identity["digest"]) == 64
        assert {"width", "grid", "flops_per_image", "has_class_token"} <= set(identity)


def test_the_page_has_the_registrys_table():
    text = (Path(__file__).resolve().parents[2] / page.PAGE).read_text(encoding="utf-8")
    assert section(text, "teachers", page.PAGE.name).strip() == page.table(), "write it: python -m erw.bench.teachers"
