"""Line charts as inline SVG. Colours and text come from the page's style, so that they follow its light and dark form."""

import math
from dataclasses import dataclass

from markupsafe import Markup

from erw.report.numbers import short
from erw.report.scales import Axis, axis
from erw.report.series import Points

WIDTH, HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 36
COLOURS = 6  # in the style sheet; beyond them lines are dashed


@dataclass(frozen=True)
class Line:
    """A curve of the run number ``index``. ``marked``: its points are measurements, each with a dot that says its value."""

    name: str
    index: int
    points: Points
    marked: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """A published result: a hollow diamond with a text of its own."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Chart:
    """``breaks``: (x, index of the run) of its hand-overs, drawn as upright lines."""

    title: str
    x_label: str
    lines: tuple[Line, ...]
    x_scale: float = 1.0
    log: bool = False
    breaks: tuple[tuple[float, int], ...] = ()
    marks: tuple[Mark, ...] = ()


def draw(chart: Chart) -> Markup:
    """The chart as an ``<svg>`` of 360 x 230 units, which the page stretches to its column."""
    points = [point for line in chart.lines for point in line.points] + [(mark.x, mark.y) for mark in chart.marks]
    across = axis([x / chart.x_scale for x, _ in points], zero=True, ticks=4)
    up = axis([y for _, y in points], log=chart.log)
    place = _Place(across, up, chart.x_scale)
    parts = [*_grid(across, up), *_labels(chart)]
    parts += [
        Markup('<line class="break c{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            index % COLOURS, place.x(x), place.x(x), _TOP, HEIGHT - _BOTTOM
        )
        for x, index in chart.breaks
    ]
    for line in chart.lines:
        parts += _line(line, place)
    parts += [_diamond(mark, place) for mark in chart.marks]
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, chart.title, Markup("").join(parts)
    )


@dataclass(frozen=True)
class _Place:
    """From values to units of the drawing."""

    across: Axis
    up: Axis
    x_scale: float

    def x(self, value: float) -> float:
        return round(_LEFT + self.across.place(value / self.x_scale) * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - _BOTTOM - self.up.place(value) * (HEIGHT - _TOP - _BOTTOM), 1)


def _grid(across: Axis, up: Axis) -> list[Markup]:
    place = _Place(across, up, 1.0)
    parts = []
    for value, text in up.ticks:
        y = place.y(value)
        parts += [Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, WIDTH - _RIGHT, y, y)]
        parts += [Markup('<text class="tick" text-anchor="end" x="{}" y="{}">{}</text>').format(_LEFT - 6, y + 3.5, text)]
    for value, text in across.ticks:
        x = place.x(value)
        parts += [Markup('<text class="tick" text-anchor="middle" x="{}" y="{}">{}</text>').format(x, HEIGHT - 21, text)]
    base = HEIGHT - _BOTTOM
    return [*parts, Markup('<line class="base" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, WIDTH - _RIGHT, base, base)]


def _labels(chart: Chart) -> list[Markup]:
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    return [Markup('<text class="axis" text-anchor="middle" x="{}" y="{}">{}</text>').format(middle, HEIGHT - 5, chart.x_label)]


def _line(line: Line, place: _Place) -> list[Markup]:
    """A path that stops at values that are not finite, and dots where they are asked for."""
    kind = f"line c{line.index % COLOURS}" + (" faint" if line.faint else "") + (" dash" if line.index >= COLOURS else "")
    parts, path, pen = [], [], "M"
    for x, y in line.points:
        if not math.isfinite(y):
            pen = "M"
            continue
        path.append(f"{pen}{place.x(x)} {place.y(y)}")
        pen = "L"
    if path:
        parts.append(Markup('<path class="{}" d="{}"/>').format(kind, "".join(path)))
    if line.marked:
        parts += [
            Markup('<circle class="dot c{}" cx="{}" cy="{}" r="3"><title>{}: {} at {}</title></circle>').format(
                line.index % COLOURS, place.x(x), place.y(y), line.name, short(y), short(x)
            )
            for x, y in line.points
            if math.isfinite(y)
        ]
    return parts


def _diamond(mark: Mark, place: _Place) -> Markup:
    x, y = place.x(mark.x), place.y(mark.y)
    corners = [(x, y - 5), (x + 5, y), (x, y + 5), (x - 5, y)]
    shape = "".join(f"{'M' if i == 0 else 'L'}{a:.1f} {b:.1f}" for i, (a, b) in enumerate(corners)) + "Z"
    return Markup('<path class="published" d="{}"><title>{}</title></path>').format(shape, mark.text)


def spread(lines: tuple[Line, ...]) -> bool:
    """Whether the lines' values are all positive and span more than a factor of eight: then a logarithmic axis shows more."""
    values = [y for line in lines for _, y in line.points if math.isfinite(y)]
    return bool(values) and min(values) > 0 and max(values) > 8 * min(values)
