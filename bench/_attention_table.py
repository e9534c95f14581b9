"""The tables of `erw.bench.attention`: the short one it ends with, and the one in the documentation."""

from itertools import groupby
from pathlib import Path

from erw.bench._record import records_in
from erw.bench._section import with_section
from erw.errors import UserError

Place = tuple[str, int, int]  # backend, head width, tokens
UNTESTED = "untested"
_HEAD = ["backend", "head width", "T", "on a GPU", "error, out / worst gradient", "forward ms", "backward ms", "forward kernel",
         "backward kernel", "on a CPU, error in fp32, out / worst gradient"]  # fmt: skip


def lines_of(rows: list[dict]) -> list[str]:
    """The rows as a text table: a line for each that ran, then a line for each reason why others did not."""
    lines = [f"{'backend':<10}{'head':>4}{'T':>6}{'out':>9}{'grads':>9}{'forward ms':>26}{'backward ms':>26}  forward kernel"]
    missing: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        name, width, tokens = _place(row)
        if row["status"] != "usable":
            missing.setdefault((name, f"{row['status']}: {row['reason']}"), []).append(f"{width} x {tokens}")
            continue
        out, gradients = _errors(row)
        times = "".join(f"{_spread(row['ms'][way]):>26}" for way in ("forward", "backward"))
        kernel = (row["kernel"]["forward"] or "-")[:60]
        lines.append(f"{name:<10}{width:>4}{tokens:>6}{out:>9}{gradients:>9}{times}  {kernel}")
    return lines + [f"{name:<10}{', '.join(places)}: {reason}" for (name, reason), places in missing.items()]


def _place(row: dict) -> Place:
    return row["backend"], row["head_width"], row["tokens"]


def _spread(ms: dict[str, float]) -> str:
    return f"{ms['median']:.3f} ({ms['p20']:.3f}-{ms['p80']:.3f})"


def _errors(row: dict) -> tuple[str, str]:
    """(of the output, of the worst gradient)."""
    error = row["error"]
    return f"{error['out']:.1e}", f"{max(error[part] for part in ('dq', 'dk', 'dv')):.1e}"


def newest(folder: Path, device_type: str) -> dict | None:
    """The last attention record of a device of that type; a GPU's dry run is none, a CPU is never timed for the table."""
    records = records_in(folder, "*attention*.json", "attention", "python -m erw.bench.attention")
    found = [record for _, record in records if record["device_type"] == device_type]
    return next((record for record in reversed(found) if device_type == "cpu" or not record["dry_run"]), None)


def table(folder: Path, matrix: list[Place]) -> str:
    """Markdown: every place of ``matrix``, from the newest records of a GPU and of a CPU in ``folder``.

    Rows of one backend that say the same are one.
    """
    gpu, cpu = newest(folder, "cuda"), newest(folder, "cpu")
    on_gpu, on_cpu = ({_place(row): row for row in record["rows"]} if record else {} for record in (gpu, cpu))
    ordered = sorted(matrix, key=lambda place: [name for name, *_ in matrix].index(place[0]))
    rows = [(place, (*_on_gpu(on_gpu.get(place)), _on_cpu(on_cpu.get(place)))) for place in ordered]
    lines = [_HEAD, ["---"] * len(_HEAD)]
    widths: dict[tuple, list[str]] = {}
    for (name, width, said), alike in groupby(rows, key=lambda row: (*row[0][:2], row[1])):
        tokens = ", ".join(str(place[2]) for place, _ in alike)
        widths.setdefault((name, tokens, said), []).append(str(width))
    lines += [[name, ", ".join(found), tokens, *said] for (name, tokens, said), found in widths.items()]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n{_source('GPU', gpu)} {_source('CPU', cpu)}"


def _on_gpu(row: dict | None) -> tuple[str, ...]:
    """What a GPU measured of one place, cell by cell."""
    if row is None or row["status"] == UNTESTED:
        return UNTESTED, *["-"] * 5
    if row["status"] != "usable":
        return f"no: {_safe(row['reason'])}", *["-"] * 5
    times = (_spread(row["ms"][way]) for way in ("forward", "backward"))
    return "usable", " / ".join(_errors(row)), *times, *(_safe(row["kernel"][way] or "-") for way in ("forward", "backward"))


def _on_cpu(row: dict | None) -> str:
    if row is None or row["status"] == UNTESTED:
        return UNTESTED
    return " / ".join(_errors(row)) if row["status"] == "usable" else f"no: {_safe(row['reason'].split('. ')[0])}"


def _safe(text: str) -> str:
    """Without what would end a table's cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _source(kind: str, record: dict | None) -> str:
    if record is None:
        return f"{kind}: no record; `{UNTESTED}` until `python -m erw.bench.attention` has run on one."
    environment = record["environment"]
    row = next((row for row in record["rows"] if row["status"] == "usable"), None)
    size = f", batch {row['batch']}, {row['heads']} heads, {row['dtype']}" if row else ""
    return f"{kind}: {environment['device']}, torch {environment['torch']}, commit {environment['commit']}{size}."


def written(file: Path, folder: Path, matrix: list[Place]) -> str:
    """The text of ``file`` with its attention section made anew. Raises `UserError` where either is missing."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--write {file} cannot be read: {error.strerror}") from None
    return with_section(text, "attention", table(folder, matrix), str(file))
