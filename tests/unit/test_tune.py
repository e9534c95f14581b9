"""The warm-up's pilot: what is read off curves of known shape, its plan, its page."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from erw.commands.tune_warmup import run as command
from erw.errors import UserError
from erw.plan import Costs
from erw.presets import preset
from erw.settings import override
from erw.tune import report
from erw.tune.choice import BINS, as_record, binned, choose, elbow
from erw.tune.pilot import PilotConfig, budget, depths_of, plan


def falling(rate: float, floor: float = -1.0, points: int = 400) -> list[tuple[float, float]]:
    """A loss that decays to ``floor`` at ``rate`` a pilot."""
    return [((k + 0.5) / points, floor * (1 - math.exp(-rate * (k + 0.5) / points))) for k in range(points)]


def test_bins_are_means_over_equal_shares():
    assert binned([(0.1, 1.0), (0.2, 3.0), (0.6, 5.0), (1.0, 7.0)], bins=2) == [2.0, 6.0]
    with pytest.raises(UserError, match="too short to see a plateau"):
        binned([(0.1, 1.0), (0.9, 2.0)])


@pytest.mark.parametrize("rate", [3.0, 6.0, 12.0])
def test_the_elbow_of_an_exponential(rate):
    """1 - exp(-a x) is farthest above its chord where its slope is the chord's: x = ln(a / (1 - exp(-a))) / a."""
    exact = math.log(rate / (1 - math.exp(-rate))) / rate
    assert elbow(binned(falling(rate))) == pytest.approx(exact, abs=1.5 / BINS)


def test_a_loss_that_does_not_fall_has_none():
    with pytest.raises(UserError, match="does not fall"):
        elbow([-0.1] * BINS)


def test_the_depth_is_the_one_ahead_at_equal_flops():
    curves = {1: [falling(4.0, -0.8)], 2: [falling(4.0, -1.0), falling(4.0, -0.98)], 3: [falling(2.0, -1.0)]}
    assert choose(curves).depth == 2
    early = {1: [falling(20.0, -0.9)], 3: [falling(3.0, -1.0)]}
    assert choose(early).depth == 1


def test_a_pilot_spends_its_share_at_every_depth():
    config = preset("digits-erw")
    runs = plan(config, PilotConfig(share=0.2, depths=(1, 2, 4), seeds=(7, 8)), out=Path("x"))
    assert list(runs) == [(1, 7), (1, 8), (2, 7), (2, 8), (4, 7), (4, 8)]
    for (depth, seed), run in runs.items():
        method = run.method
        spent = Costs(run).per_image(method.phase(0)) * method.warmup_images
        assert spent == pytest.approx(0.2 * budget(config), rel=0.01)
        assert (method.depth, run.train.seed, run.eval.name) == (depth, seed, "none")
        assert run.train.images - method.warmup_images == run.train.batch


def test_depths_surround_the_presets():
    assert depths_of(preset("digits-erw")) == (1, 2, 3)
    assert depths_of(preset("in256-erw-xl2")) == (2, 5, 8)


def test_the_page_gives_options_that_the_run_takes():
    curves = {depth: [falling(5.0, -1.0 + 0.1 * depth)] for depth in (1, 2)}
    record = as_record(curves, choose(curves), preset="digits-erw", warmup_images=4576, projection_depth=3,
                       projection_raised=False, pilot_share=0.4, budget_flops=1e12, seeds=[7])  # fmt: skip
    config = override(preset("digits-erw"), report.options(record).split())
    assert (config.method.depth, config.method.warmup_images) == (record["depth"], 4576)
    text = report.markdown(record)
    assert f"`{report.options(record)}`" in text and "| 1 (chosen) |" in text and "| 2 |" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["digits-repa"], "is about ERW's warm-up, this is method repa"),
        (["digits-erw", "--share", "1.5"], "--share must be above 0 and below 1"),
        (["digits-erw", "--share", "0.0001"], "shows no curve: raise --share"),
        (["digits-erw", "--depths", "9"], "--method.depth 9 is not a block"),
        (["digits-erw", "--seeds", "1,1"], "--seeds must be different numbers"),
        (["digits-erw", "--nonsense", "1"], "there is no option --nonsense"),
    ],
)
def test_mistakes_are_said_in_a_line(arguments, message, tmp_path):
    with pytest.raises(UserError) as refused:
        command([*arguments, "--out", str(tmp_path / "pilot")])
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "pilot").exists()


def test_depth_and_projection_stay_in_order():
    config = preset("digits-erw")
    shallow = replace(config, method=replace(config.method, projection_depth=2))
    runs = plan(shallow, PilotConfig(depths=(4,)), out=Path("x"))
    assert all(run.method.projection_depth == 4 for run in runs.values())
