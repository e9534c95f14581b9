"""Axes, curves and the charts drawn of them."""

import math
import re

import pytest

from erw.report.charts import HEIGHT, WIDTH, Chart, Line, draw
from erw.report.numbers import compact, duration, flops, listed, short
from erw.report.record import read_runs
from erw.report.scales import axis
from erw.report.series import curve, smoothed, thinned
from folders import report_row, write_run
from pages import Page
from tiny import BATCH, tiny

RANGES = [
    (0.0, 26336.0),
    (0.3, 1.2),
    (-1.3, 0.2),
    (2.3, 49.0),
    (1e-9, 3.0),
    (5.0, 5.0),
    (0.0, 0.0),
    (-2.0, -2.0),
    (1e8, 1.0e8 + 3),
    (99.99999999, 100.0),
    (1e-15, 3e-15),
]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_an_axis_holds_its_values_and_a_few_ticks(low, high, log):
    found = axis([low, math.nan, high, math.inf], log=log)
    assert found.low <= low <= high <= found.high and found.low < found.high
    assert found.log == (log and low > 0)
    places = [found.place(value) for value, _ in found.ticks]
    assert 2 <= len(places) <= 9 and places == sorted(places) and all(-1e-9 <= p <= 1 + 1e-9 for p in places)
    assert len({text for _, text in found.ticks}) == len(places)


def test_an_axis_from_zero_ends_with_its_data():
    found = axis([3.0, 26336.0], zero=True)
    assert (found.low, found.high) == (0.0, 26336.0) and found.ticks[0] == (0.0, "0")


def test_a_line_stops_where_values_are_not_finite():
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0), (4, math.inf), (5, 2.0)]
    svg = str(draw(Chart("a <title>", "x", (Line('n"', 0, points, marked=True),))))
    path = re.search(r'class="line c0" d="([^"]*)"', svg)[1]
    assert path.count("M") == 3 and path.count("L") == 1 and "nan" not in svg and "inf" not in svg
    assert svg.count("<circle") == 4 and "a &lt;title&gt;" in svg and "n&#34;: 2 at 1" in svg
    numbers = [float(n) for n in re.findall(r"[ML]([\d.]+) ", path)]
    assert all(0 <= n <= WIDTH for n in numbers) and f"0 0 {WIDTH} {HEIGHT}" in svg
    assert not Page(svg).errors


def test_more_runs_than_colours_are_dashed():
    svg = str(draw(Chart("t", "x", tuple(Line("n", i, [(0, i), (1, i + 1)]) for i in (0, 7)))))
    assert 'class="line c0"' in svg and 'class="line c1 dash"' in svg


def test_curves_break_at_a_hand_over_and_speed_is_that_of_each_stretch(tmp_path):
    slow = [
        report_row(BATCH, seconds=1.0, phase="warmup"),
        report_row(2 * BATCH, seconds=5.0),
        report_row(3 * BATCH, seconds=6.0),
    ]
    run = read_runs([write_run(tmp_path / "run", tiny("sit", "x"), rows=slow)])[0]
    assert curve(run, "images_per_second") == [[(16, 16.0)], [(32, 4.0), (48, 16.0)]]
    assert [len(part) for part in curve(run, "loss")] == [1, 2] and curve(run, "align") == []


def test_thinning_and_smoothing_keep_the_mean():
    points = [(float(i), float(i % 2)) for i in range(1000)]
    thin = thinned(points, 100)
    assert len(thin) == 100 and all(y == 0.5 for _, y in thin) and thinned(points[:50], 100) == points[:50]
    assert smoothed(points, 3)[1] == (1.0, 1 / 3) and len(smoothed(points, 3)) == 1000
    assert smoothed([(0, math.nan), (1, 2.0)], 1) == [(1, 2.0)]


def test_numbers_read_well():
    assert [short(v) for v in (0.004, 2.51892, 25600, 1234.5, 1.167e12, None, math.nan, -math.inf, 0.0)] == [
        "0.004", "2.519", "25,600", "1,234", "1.167e+12", "-", "nan", "-inf", "0",
    ]  # fmt: skip
    assert [compact(v) for v in (0, 0.5, 12500, 3e6, 1e-5, 2e13, -0.4)] == ["0", "0.5", "12.5k", "3M", "1e-5", "2e13", "-0.4"]
    assert [duration(s) for s in (0.001, 71.2, 720, 12240, 400000, None)] == [
        "under 0.01 s",
        "71.2 s",
        "12 min",
        "3.4 h",
        "4.63 days",
        "-",
    ]
    assert flops(1.1667e12) == "1.17e+12" and listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
