"""What a person sees of a run: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from datetime import datetime
from typing import Any, Literal, Protocol

from tqdm import tqdm

Style = Literal["auto", "bar", "line", "none"]
_LINE_SECONDS = 10.0  # between lines, at least


class Progress(Protocol):
    """A view of a run from its first image to its last."""

    def advance(self, images: int, phase: str) -> None:
        """So many images more."""
        ...

    def show(self, images: int, row: dict[str, Any]) -> None:
        """The figures of a report."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class Bar:
    """tqdm's. It appears with the first step: a mistake found before it gets a line of its own."""

    def __init__(self, total: int, start: int):
        self._span, self._bar = (total, start), None

    def advance(self, images: int, phase: str) -> None:
        if self._bar is None:
            total, start = self._span
            self._bar = tqdm(total=total, initial=start, unit="img", unit_scale=True, dynamic_ncols=True, mininterval=0.5)
        self._bar.set_description(phase, refresh=False)
        self._bar.update(images)

    def show(self, images: int, row: dict[str, Any]) -> None:
        if self._bar is not None:
            self._bar.set_postfix({k: f"{row[k]:.4g}" for k in ("loss", "align") if k in row}, refresh=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Lines:
    """One line a report on stderr, not more often than every ten seconds, and the last."""

    def __init__(self, total: int):
        self.total, self._last, self._kept = total, float("-inf"), ""

    def advance(self, images: int, phase: str) -> None:
        pass

    def show(self, images: int, row: dict[str, Any]) -> None:
        self._kept = line(images, self.total, row)
        if self._kept and time.monotonic() - self._last >= _LINE_SECONDS:
            self._write()

    def close(self) -> None:
        if self._kept:
            self._write()

    def _write(self) -> None:
        print(f"{datetime.now():%H:%M:%S}  {self._kept}", file=sys.stderr, flush=True)
        self._last, self._kept = time.monotonic(), ""


class Nothing:
    """Shows nothing."""

    def advance(self, images: int, phase: str) -> None:
        pass

    def show(self, images: int, row: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def line(images: int, total: int, row: dict[str, Any]) -> str:
    """A report in one line; empty for a row without speed, such as an evaluation's."""
    if "images_per_second" not in row:
        return ""
    recent = row.get("images_per_second_recent", row["images_per_second"])
    parts = [
        f"{row.get('phase', '')}  {images:,}/{total:,} images ({images / total:.1%})",
        f"{recent:,.4g} images/s (phase {row['images_per_second']:,.4g})",
    ]
    for key, form in (("mfu", "MFU {:.1%}"), ("data_wait", "data {:.1%}"), ("communication", "comm {:.1%}"),
                      ("memory_gib", "{:.2f} GiB"), ("skipped", "skipped {:.0f}"), ("loss", "loss {:.4g}"),
                      ("align", "align {:.4g}"), ("grad_norm", "norm {:.3g}")):  # fmt: skip
        if row.get(key) is not None:
            parts.append(form.format(row[key]))
    return "  ".join((*parts, f"left {_duration((total - images) / max(recent, 1e-9))}"))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60:02d} min"
        if minutes >= 60
        else f"{seconds:.0f} s"
        if seconds < 120
        else f"{minutes} min"
    )


def progress(style: Style, total: int, start: int) -> Progress:
    """The view called ``style``; auto: a bar where stderr is a terminal, else lines."""
    if style == "none":
        return Nothing()
    if style == "bar" or (style == "auto" and sys.stderr.isatty()):
        return Bar(total, start)
    return Lines(total)
