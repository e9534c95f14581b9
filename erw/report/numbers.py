"""Numbers as people read them. Not a number and infinity stay visible."""

_LONG = 1e9  # numbers that are not counts are written with an exponent from here on


def short(value: float | int | None) -> str:
    """Four significant digits, thousands with commas: 0.004, 2.519, 25,600, 1.167e+12; a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, int) or (abs(value) < _LONG and value == int(value)):
        return f"{int(value):,}"
    if 1e3 <= abs(value) < _LONG:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def flops(value: float | None) -> str:
    """1.16e+12."""
    return "-" if value is None else f"{value:.2e}"


def duration(seconds: float | None) -> str:
    """71 s, 12 min, 3.4 h, 2.1 days."""
    if seconds is None:
        return "-"
    if seconds < 0.01:
        return "under 0.01 s"
    for size, unit, limit in ((1, "s", 120), (60, "min", 120), (3600, "h", 48)):
        if seconds < limit * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"


def hours(device_seconds: float | None) -> str:
    """Device-hours with three significant digits."""
    return "-" if device_seconds is None else f"{device_seconds / 3600:.3g}"


def compact(value: float) -> str:
    """For the ticks of an axis: 0, 0.5, 12.5k, 3M, 1e-5."""
    if value == 0:
        return "0"
    size = abs(value)
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if unit <= size < 1e12:
            return f"{value / unit:g}{letter}"
    return f"{value:g}".replace("e-0", "e-").replace("e+", "e")


def listed(words: list[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
