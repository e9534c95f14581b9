"""The ladder's tables and pictures in the documentation: ``python -m erw.bench.speed --write docs/speed.md``

Measures nothing. Puts the newest record of `erw.bench.step` of a GPU and of a CPU into the sections ``<!-- speed cuda -->`` and
``<!-- speed cpu -->`` of the file, and draws speed over commits from all records of the same hardware, model and batch.
"""

import argparse
import os
from collections import defaultdict
from pathlib import Path

from erw.bench._record import RESULTS, records_in
from erw.bench._section import with_section
from erw.bench._table import markdown, title
from erw.errors import UserError, exits_cleanly

WHAT = "training step, a ladder"
_DEVICES = {"cuda": "GPU", "cpu": "CPU"}
_HISTORY = "speed-over-commits.png"


def records(folder: Path) -> list[tuple[Path, dict]]:
    """Ladder records in ``folder`` by date, dry runs left out. Raises `UserError` for a file that is no JSON."""
    found = records_in(folder, "*_step_*.json", WHAT, "python -m erw.bench.step")
    return [(path, content) for path, content in found if not content["dry_run"]]


def section(kind: str, found: list[tuple[Path, dict]], beside: Path) -> str:
    """Markdown of the newest record of device type ``kind``, with links relative to the folder ``beside``."""
    mine = [entry for entry in found if entry[1]["device_type"] == kind]
    if not mine:
        return (
            f"{_DEVICES[kind]}: not measured. `python -m erw.bench.step` on one writes the record that this table is made from."
        )
    path, content = mine[-1]
    environment = content["environment"]
    lines = [
        f"{environment['device']}, {environment['threads']} threads, torch {environment['torch']}, commit"
        f" {environment['commit']}. Record: `{path.name}`."
    ]
    picture = path.with_suffix(".png")
    if picture.exists():
        lines += ["", f"![images per second of every row]({os.path.relpath(picture, beside)})"]
    for scene in content["scenes"]:
        lines += ["", f"**{title(scene)}**", "", markdown(scene)]
    return "\n".join(lines)


def history(found: list[tuple[Path, dict]]) -> dict[str, dict[str, list[tuple[str, float]]]]:
    """Title of hardware, model and batch to (commit, images/s) by date: of each reference row and of the last rung."""
    series: dict[str, dict[str, list[tuple[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for _, content in found:
        environment = content["environment"]
        commit = str(environment["commit"]) + "+" * bool(environment["dirty"])
        for scene in content["scenes"]:
            measured = [row for row in scene["rows"] if row["status"] == "measured" and row["setup"]["phase"] == "full"]
            named = [(row["name"], row) for row in measured if row["kind"] == "reference"]
            named += [("last rung", row) for row in measured if row["kind"] == "ladder"][-1:]
            where = (environment["device"], f"{environment['threads']} threads" if content["device_type"] == "cpu" else "",
                     scene["model"], f"{scene['tokens']} tokens", f"batch {scene['batch']}")  # fmt: skip
            for name, row in named:
                series[", ".join(filter(None, where))][name].append((commit, row["images_per_s"]["median"]))
    return series


def written(file: Path, results: Path) -> str:
    """The text of ``file`` with both sections made anew, and the picture over commits beside it in ``pictures/``."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--write {file} cannot be read: {error.strerror}") from None
    found = records(results)
    for kind in _DEVICES:
        text = with_section(text, f"speed {kind}", section(kind, found, file.parent), str(file))
    series = history(found)
    over_commits = "No record yet."
    if series:
        from erw.bench._ladder_picture import draw_history  # here: needs matplotlib

        picture = file.parent / "pictures" / _HISTORY
        picture.parent.mkdir(exist_ok=True)
        draw_history(series, picture)
        over_commits = f"![images per second over commits](pictures/{_HISTORY})"
    return with_section(text, "speed over commits", over_commits, str(file))


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line. Exit code 2 for a file without the sections."""
    parser = argparse.ArgumentParser(prog="python -m erw.bench.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, default=Path("docs/speed.md"), help="file (default docs/speed.md)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records (default bench/results)")
    options = parser.parse_args(arguments)
    options.write.write_text(written(options.write, options.results), encoding="utf-8")


if __name__ == "__main__":
    main()
