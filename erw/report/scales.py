"""Axes of a chart: where the ticks are and where a value lies between the ends."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from erw.report.numbers import compact

_FLAT = 1e-6


@dataclass(frozen=True)
class Axis:
    """From ``low`` to ``high``, linear or logarithmic, with ``ticks`` (value, text) in between."""

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def axis(values: Iterable[float], *, log: bool = False, zero: bool = False, ticks: int = 5) -> Axis:
    """An axis that holds the finite ``values``; with ``zero`` it begins there. ``log`` needs positive ones."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if log and low > 0:
        return _logarithmic(low, high, ticks)
    low = min(low, 0.0) if zero else low
    if high - low <= _FLAT * max(abs(low), abs(high)):  # one value, but for rounding
        low, high = (low - 0.5 * abs(low or 1.0), high + 0.5 * abs(high or 1.0)) if not zero or low else (0.0, 1.0)
    step = _step((high - low) / ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    marks = [float(f"{i * step:.12g}") for i in range(first, last + 1)]
    if zero and low == 0:  # the last tick need not lie beyond the data
        return Axis(0.0, high, False, tuple((v, compact(v)) for v in marks if v <= high * 1.0001))
    return Axis(marks[0], marks[-1], False, tuple((v, compact(v)) for v in marks))


def _step(rough: float) -> float:
    """The next larger of 1, 2, 2.5 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)


def _logarithmic(low: float, high: float, ticks: int) -> Axis:
    """From a mark at or below ``low`` to one at or above ``high``, marks being 1, 2 and 5 times powers of ten."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    marks = [float(f"{factor}e{power}") for power in powers for factor in (1, 2, 5)]
    first = max(i for i, mark in enumerate(marks) if mark <= low)
    last = min(i for i, mark in enumerate(marks) if mark >= high and i > first)
    marks = marks[first : last + 1]
    shown = marks if len(marks) <= ticks + 2 else [mark for mark in marks if f"{mark:e}".startswith("1")]
    stride = -(-len(shown) // (ticks + 2))
    return Axis(marks[0], marks[-1], True, tuple((mark, compact(mark)) for mark in shown[::stride]))
