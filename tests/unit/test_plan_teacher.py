"""What teachers cost in plans: FLOPs, time and disk, for as long as there is an alignment."""

from dataclasses import replace

import pytest

from erw.bench.convergence.__main__ import main as study
from erw.flops import train_flops
from erw.plan import Costs, phases, plan_text, teacher_words
from erw.plan.forecast import TEACHER, Forecaster
from erw.plan.network import Network
from erw.plan.rates import rates_of
from erw.plan.report import Costs as Prices
from erw.plan.report import disk_of, report
from erw.presets import preset
from erw.settings import override
from erw.teachers import TeacherConfig, load_teacher, teacher_bytes, teacher_flops
from tiny import BATCH, tiny

ONLINE = {"name": "digits-contrastive", "source": "online"}
FORWARD = teacher_flops("digits-contrastive", 4)


def total(config) -> float:
    return sum(Costs(config).per_image(phase) * images for phase, images in phases(config))


def test_an_online_teacher_costs_its_forward_of_every_aligned_image():
    online, cached = tiny("repa", "x", teacher=ONLINE), tiny("repa", "x")
    assert total(online) - total(cached) == 6 * BATCH * FORWARD
    cut = {"decay": "cut-off", "decay_images": 2.5 * BATCH}
    online, cached = tiny("repa", "x", teacher=ONLINE, method=cut), tiny("repa", "x", method=cut)
    assert total(online) - total(cached) == 3 * BATCH * FORWARD
    assert total(tiny("sit", "x", teacher=ONLINE)) == total(tiny("sit", "x"))


@pytest.mark.parametrize(
    "cut, images", [(1.0, BATCH), (2.0 * BATCH, 2 * BATCH), (2.5 * BATCH, 3 * BATCH), (99.0 * BATCH, 6 * BATCH)]
)
def test_a_phase_whose_alignment_ends_is_two(cut, images):
    """As the trainer decides: a step aligns if there is weight at its first image."""
    config = tiny("repa", "x", method={"decay": "cut-off", "decay_images": cut})
    starts = range(0, 6 * BATCH, BATCH)
    found = [phase.aligns for phase, images in phases(config) for _ in range(images // BATCH)]
    assert found == [config.method.phase(start).aligns for start in starts] and sum(found) * BATCH == images
    assert len(phases(config)) == len(set(found))


def test_erw_without_weight_in_its_second_phase_aligns_in_the_warm_up_alone():
    config = tiny("erw", "x", teacher=ONLINE, method={"coefficient": 0.0})
    assert [(p.name, p.aligns, n) for p, n in phases(config)] == [("warmup", True, 3 * BATCH), ("full", False, 3 * BATCH)]
    assert total(config) - total(tiny("erw", "x", method={"coefficient": 0.0})) == 3 * BATCH * FORWARD


def test_groups_larger_than_a_micro_batch_are_seen_again_and_again():
    groups = {"align": "nt-xent", "group_images": 2 * BATCH}
    config = tiny("repa", "x", teacher=ONLINE, method=groups)
    phase = config.method.phase(0)
    step = train_flops(config.model, config.method, phase, config.teacher_specs)
    assert Costs(config).per_image(phase) - step == 2 * FORWARD
    assert Costs(config, ranks=4).per_image(phase) - step == 8 * FORWARD


def test_the_dry_run_says_its_share():
    config = tiny("repa", "x", teacher=ONLINE)
    share = 6 * BATCH * FORWARD / total(config)
    words = teacher_words(config)
    assert f"teacher digits-contrastive, online: {FORWARD / 1e9:.4g} GFLOP an image, 96 images" in words
    assert words.endswith(f"{share:.1%} of the total") and words in plan_text(config).splitlines()
    spec = tiny("repa", "x").teacher_specs[0]
    assert f"features take {2 * 16 * spec.width / 1e3:.4g} kB an image" in plan_text(tiny("repa", "x"))
    assert "\nteacher " not in plan_text(tiny("sit", "x"))


@pytest.fixture(scope="module")
def forecast():
    """Of a teacher online until the second step."""
    config = tiny("repa", "x", teacher=ONLINE, method={"decay": "cut-off", "decay_images": 2.0 * BATCH})
    return Forecaster(config, rates_of("cpu", tflops=1.0, gb_per_s=10.0)).at(Network(1, 1, 10, 10))


def test_a_forecast_has_the_teachers_time(forecast):
    first, rest = forecast.phases
    assert first.parts[TEACHER] == pytest.approx(BATCH * FORWARD / 1e12) and TEACHER not in rest.parts
    assert rest.flops_per_image < first.flops_per_image - FORWARD
    text = report(forecast, Prices(watts=None, price=1.0, said="-"), disk_of(forecast, 1000), None)
    (line,) = [line for line in text.splitlines() if line.startswith("teacher ")]
    share = 2 * first.parts[TEACHER] / forecast.seconds
    assert line.startswith(teacher_words(forecast.config)) and f"{share:.1%} of the time" in line


def test_a_forecast_has_the_teachers_weights_to_the_end(forecast):
    held = sum(t.numel() * t.element_size() for t in load_teacher("digits-contrastive", "cpu").parameters())
    for found in forecast.phases:
        assert held <= found.memory.teacher < 1.1 * held  # norms' running statistics are no parameters
        assert found.memory.state == replace(found.memory, teacher=0).state + found.memory.teacher
    cached = Forecaster(tiny("repa", "x"), rates_of("cpu", tflops=1.0, gb_per_s=10.0)).at(Network(1, 1, 10, 10))
    assert all(found.memory.teacher == 0 for found in cached.phases)


@pytest.mark.parametrize("name, parameters", [("dinov2-b", 86.6e6), ("mae-l", 303e6), ("efficientnet-lite0", 4.65e6)])
def test_a_teachers_bytes_follow_its_precision(name, parameters):
    found = {
        precision: teacher_bytes(name, 16, TeacherConfig(name=name, precision=precision)) for precision in ("bf16", "fp32")
    }
    assert found["fp32"] == 2 * found["bf16"] == pytest.approx(4 * parameters, rel=0.02)


def test_an_online_teacher_needs_pixels_on_disk_a_cached_one_features(forecast):
    cached = preset("in256-repa-xl2")
    online = override(cached, ["--teacher.source", "online"])
    disks = [disk_of(replace(forecast, config=config), 1000) for config in (online, cached)]
    assert [(disk.pixels, disk.features) for disk in disks] == [
        (1000 * 3 * 256 * 256, {}),
        (0, {"dinov2-b": 1000 * 2 * 256 * 768}),
    ]
    assert disks[0].per_image(True) - disks[0].per_image(False) == 3 * 256 * 256


def test_a_studys_dry_run_says_it_of_its_variants(tmp_path, capsys):
    file = tmp_path / "s.toml"
    file.write_text("""
title = "t"
about = "a"
seeds = [0, 1]
evaluations = 2
quality = "frechet"
[budget]
unit = "images"
amount = 320
[variants.online]
label = "OL"
preset = "digits-repa"
set = { "teacher.source" = "online" }
[variants.cached]
label = "CA"
preset = "digits-repa"
[variants.sit]
label = "SIT"
preset = "digits-sit"
""")
    study([str(file), "--dry-run"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("teacher ")]
    assert len(lines) == 2 and lines[0].startswith("teacher digits-contrastive, online") and lines[0].endswith("(OL)")
    assert f"320 images: {320 * FORWARD:.4g} FLOP" in lines[0] and "cached" in lines[1] and lines[1].endswith("(CA)")
