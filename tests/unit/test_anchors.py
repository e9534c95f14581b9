"""Published figures beside a run: the right ones, where they apply, and nowhere else."""

from dataclasses import replace

import pytest

from erw.evaluate.anchors import BATCH, PUBLISHED, anchors_for, beside, nearest
from erw.models.sit import sized
from erw.presets import preset


def test_a_run_is_held_against_its_own_method_first():
    anchors = anchors_for(preset("in256-repa-xl2"))
    assert {a.model for a in anchors} == {"SiT-XL/2"}
    repa = [a for a in anchors if a.method == "repa"]
    assert anchors[: len(repa)] == repa
    assert {a.steps: a.value for a in repa} == {50_000: 52.3, 100_000: 19.4, 200_000: 11.1, 400_000: 7.9, 4_000_000: 5.9}
    assert {a.method for a in anchors} == {"none", "repa", "erw", "irepa", "reg"}


def test_erw_counts_its_warm_up_in_images_and_not_in_steps():
    (first, second) = [a for a in anchors_for(preset("in256-erw-xl2")) if (a.method, a.metric) == ("erw", "fid")]
    assert (first.steps, first.images, first.value) == (50_000, 150_000 * BATCH, 25.0)
    assert (second.steps, second.images, second.value) == (100_000, 200_000 * BATCH, 12.1)
    assert preset("in256-erw-xl2").method.warmup_images + 50_000 * BATCH == first.images


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        ("train", {"batch": 512}),
        ("sample", {"guidance": 1.5}),
        ("latents", {"kind": "pixels"}),
        ("model", {"input_size": 64}),
        ("model", {"num_classes": 10}),
        ("model", {"depth": 27}),
    ],
)
def test_another_protocol_or_model_has_no_anchors(section, fields):
    config = preset("in256-repa-xl2")
    assert anchors_for(config)
    assert anchors_for(replace(config, **{section: replace(getattr(config, section), **fields)})) == []


def test_digits_and_dit_have_none():
    assert anchors_for(preset("digits-repa")) == []
    assert anchors_for(preset("in256-dit-xl2")) == []  # no source that we keep has its curve


def test_the_line_of_an_evaluation_names_the_nearest_figure():
    anchors = anchors_for(preset("in256-repa-xl2"))
    assert beside(nearest(anchors, "fid", 45_000 * BATCH)) == "published SiT-XL/2 + REPA at 50K steps: 52.3"
    assert beside(nearest(anchors, "fid", 350_000 * BATCH)) == "published SiT-XL/2 + REPA at 400K steps: 7.9"
    assert beside(nearest(anchors, "fid", 90_000_000 * BATCH)) == "published SiT-XL/2 + REPA at 4M steps: 5.9"
    assert nearest(anchors, "is", BATCH).name == "SiT-XL/2 + ERW"  # the only ones who publish it
    assert nearest(anchors, "accuracy", BATCH) is None and nearest([], "fid", BATCH) is None


def test_the_table_is_sound():
    assert len({(a.model, a.method, a.steps, a.metric) for a in PUBLISHED}) == len(PUBLISHED)
    for anchor in PUBLISHED:
        size = sized(anchor.model.partition("-")[2])  # raises for a size that is not
        assert anchor.source and anchor.value > 0 and anchor.images >= anchor.steps * BATCH and size.patch_size == 2
    better = {"fid": 1, "sfid": 1, "is": -1}
    for a in PUBLISHED:
        for b in PUBLISHED:
            if (a.model, a.method, a.metric) == (b.model, b.method, b.metric) and a.steps < b.steps:
                assert better[a.metric] * (a.value - b.value) > 0, (a, b)
