"""The charts of a page: evaluations against images, FLOPs and seconds, and the curves of training."""

from collections.abc import Sequence

from markupsafe import Markup

from erw.evaluate.anchors import Anchor
from erw.report.charts import Chart, Line, Mark, draw, spread
from erw.report.facts import method_name
from erw.report.metrics import figures, metric
from erw.report.numbers import short
from erw.report.record import RunRecord
from erw.report.series import MOST_POINTS, curve, smoothed, thinned

# Numbers in a row of metrics.jsonl that are no curve of their own.
_NO_CURVES = {"images", "seconds", "flops"}
_QUIET = {"lr", "coefficient", "loss_scale", "skipped"}  # shown where they change
_LABELS = {
    "loss": "training loss",
    "velocity": "velocity loss",
    "mse": "noise loss",
    "vlb": "variational bound, bits a dimension",
    "align": "alignment loss",
    "grad_norm": "gradient norm",
    "images_per_second": "images a second",
    "lr": "learning rate",
    "coefficient": "weight of the alignment loss",
    "loss_scale": "loss scale",
    "skipped": "skipped steps",
}
_RAISED = str.maketrans("0123456789", "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
_SMOOTH_FROM = 40  # reports; shorter curves are shown as they are
_REACH = 1.5  # published results further than that beyond the runs are left to the table


def evaluation_charts(runs: list[RunRecord], anchors: Sequence[Anchor]) -> list[tuple[str, list[Markup]]]:
    """(metric's label, its charts against images, FLOPs and seconds) of each metric of which one way is better."""
    names = dict.fromkeys(name for run in runs for row in run.evals for name in figures(row))
    rows = []
    for name in [name for name in names if metric(name).better != "none"]:
        better = f"{metric(name).label}, {metric(name).better} is better"
        rows.append((better, [_evaluation(runs, name, axis, anchors) for axis in ("images", "flops", "seconds")]))
    return rows


def _evaluation(runs: list[RunRecord], name: str, axis: str, anchors: Sequence[Anchor]) -> Markup:
    lines = []
    for index, run in enumerate(runs):
        points = [(float(row[axis]), figures(row)[name]) for row in run.evals if axis in row and name in figures(row)]
        lines += [Line(run.name, index, sorted(points), marked=True)] if points else []
    last = max([x for line in lines for x, _ in line.points], default=0.0)
    marks = [
        Mark(
            float(a.images),
            a.value,
            f"published: {a.model}, {method_name(a.method)}, {short(a.value)} at {short(a.images)} images ({a.source})",
        )
        for a in anchors
        if axis == "images" and metric(a.metric).label == metric(name).label and a.images <= _REACH * last
    ]
    scale, unit = _unit(axis, last)
    title = f"{metric(name).label} against training {axis}"
    return draw(Chart(title, unit, tuple(lines), scale, log=spread(tuple(lines)), marks=tuple(marks)))


def _unit(axis: str, last: float) -> tuple[float, str]:
    """(what values are divided by, the axis's label)."""
    if axis == "images":
        return 1.0, "training images"
    if axis == "seconds":
        for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
            if last >= 2 * size:
                return size, f"training {unit}"
        return 1.0, "training seconds"
    power = max(0, len(f"{last:.0f}") - 1)
    return 10.0**power, f"training FLOP (10{str(power).translate(_RAISED)})"


def training_charts(runs: list[RunRecord]) -> tuple[list[tuple[str, Markup]], str]:
    """((label, chart) of each curve in metrics.jsonl, how they were drawn)."""
    names = dict.fromkeys(name for run in runs for row in run.metrics for name in _curves(row))
    order = {name: i for i, name in enumerate(_LABELS)}
    shown, wide, thin = [], 0, False
    for name in sorted(names, key=lambda name: order.get(name, 2)):
        lines, width, cut = _training_lines(runs, name)
        flat = len({y for line in lines for _, y in line.points}) <= len(runs)
        if not lines or (name in _QUIET and flat):
            continue
        wide, thin = max(wide, width), thin or cut
        breaks = tuple((float(image), index) for index, run in enumerate(runs) for image, _ in run.hand_overs)
        label = _LABELS.get(name, name)
        chart = Chart(f"{label} against training images", "training images", lines, log=_by_factors(name, lines), breaks=breaks)
        shown.append((label, draw(chart)))
    words = [f"Strong lines are means over {wide} reports, faint ones the reports themselves."] if wide else []
    words += [f"Faint lines of more than {MOST_POINTS} reports are means over equal stretches."] if thin else []
    words += ["Upright lines are hand-overs between phases."] if any(run.hand_overs for run in runs) else []
    return shown, " ".join(words)


def _curves(row: dict) -> list[str]:
    return [name for name, value in row.items() if isinstance(value, float | int) and name not in _NO_CURVES]


def _by_factors(name: str, lines: tuple[Line, ...]) -> bool:
    return name in ("grad_norm", "lr", "loss_scale", "velocity", "mse") and spread(lines)


def _training_lines(runs: list[RunRecord], name: str) -> tuple[tuple[Line, ...], int, bool]:
    """(lines of a curve, reports that its smoothing takes together, whether a line was thinned)."""
    faint, strong, wide, thin = [], [], 0, False
    for index, run in enumerate(runs):
        for points in curve(run, name):
            if len(points) < _SMOOTH_FROM or name in _QUIET:
                strong.append(Line(run.name, index, thinned(points)))
                continue
            width = max(5, len(points) // 25) | 1
            wide, thin = max(wide, width), thin or len(points) > MOST_POINTS
            faint.append(Line(run.name, index, thinned(points), faint=True))
            strong.append(Line(run.name, index, thinned(smoothed(points, width))))
    return (*faint, *strong), wide, thin
