"""A picture of a page in headless Chromium: ``python -m erw.bench.screenshot PAGE.html OUT.png [--width 390] [--height 4000]``.

Fails where the page is wider than the window, so that it would scroll sideways.
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from erw.errors import UserError, exits_cleanly

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files",
            "--virtual-time-budget=4000")  # fmt: skip
_NARROWEST = 500  # Chromium's own limit of a window; the page's frame may be narrower

# The page stands in a frame of the wanted size, which tells how large the page would be.
_FRAME = """<!doctype html><meta charset="utf-8"><title>-</title><body style="margin:0">
<iframe src="{uri}" style="border:0;display:block;width:{width}px;height:{height}px" onload="
  const page = this.contentDocument.documentElement;
  document.title = [page.scrollWidth, page.clientWidth, page.scrollHeight].join(' ')"></iframe>"""


def browser() -> str | None:
    """The path of an installed Chromium, None without one."""
    return next((path for name in _BROWSERS if (path := shutil.which(name))), None)


def picture(page: Path, out: Path | None, width: int, height: int = 0, dark: bool = False) -> tuple[int, int]:
    """(width, height) that ``page`` takes in a window of ``width``; written to ``out`` as PNG, to ``height`` or its own end.

    Raises `UserError` where there is no browser or it fails.
    """
    found = browser()
    if found is None:
        raise UserError(f"no browser found ({', '.join(_BROWSERS)}): install one (Debian: apt-get install chromium)")
    if not page.is_file():
        raise UserError(f"'{page}' does not exist: name a page")
    with tempfile.TemporaryDirectory() as folder:
        command = [found, *_OPTIONS, f"--user-data-dir={folder}/profile", *(["--force-dark-mode"] if dark else [])]
        frame = Path(folder) / "frame.html"
        frame.write_text(_FRAME.format(uri=page.resolve().as_uri(), width=width, height=height or 800), encoding="utf-8")
        title = re.search(r"<title>(\d+) (\d+) (\d+)</title>", _run([*command, "--dump-dom", frame.as_uri()]))
        if title is None:
            raise UserError(f"{found} did not show {page}")
        taken, tall = int(title[1]), int(title[3])
        if out is not None:
            frame.write_text(_FRAME.format(uri=page.resolve().as_uri(), width=width, height=height or tall), encoding="utf-8")
            size = f"--window-size={max(width, _NARROWEST)},{height or tall}"
            shot = Path(folder) / "shot.png"
            _run([*command, size, f"--screenshot={shot}", frame.as_uri()])
            _crop(shot, out, width)
    return taken, tall


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "LANG": "C.UTF-8"}
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} did not end") from None
    if done.returncode != 0:
        raise UserError(f"{command[0]} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.stdout


def _crop(shot: Path, out: Path, width: int) -> None:
    from PIL import Image

    with Image.open(shot) as image:
        cut = image.convert("RGB").crop((0, 0, width, image.height))
    cut.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(out, optimize=True)


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1280, help="of the window in pixels (default 1280)")
    parser.add_argument("--height", type=int, default=0, help="of the picture; 0 (default) is the whole page")
    parser.add_argument("--dark", action="store_true", help="as a reader sees it who prefers dark pages")
    options = parser.parse_args()
    taken, tall = picture(options.page, options.out, options.width, options.height, options.dark)
    print(f"{options.out}: {options.page} takes {taken} x {tall} in a window of {options.width}")
    if taken > options.width:
        raise UserError(f"{options.page} is {taken - options.width} pixels wider than the window")


if __name__ == "__main__":
    main()
