"""The ladder's table, as the text that the command ends with and as Markdown."""

_SHARES = ("GEMM", "attention", "memory-bound", "idle")
_DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
APART = "* did not fit beside the anchor and was measured by itself"


def lines_of(content: dict) -> list[str]:
    """The record of `erw.bench.step` as text lines."""
    environment, peaks = content["environment"], content["measured_peaks"]
    lines = [f"{environment['device']}, torch {environment['torch']}, commit {environment['commit']}"]
    if content["dry_run"]:
        lines.append("dry run: the numbers say nothing about speed")
    if peaks:
        lines.append(
            f"measured: bf16 GEMM of {peaks['gemm_size']} cubed {peaks['gemm_tflops']:.1f} TFLOP/s,"
            f" copy {peaks['copy_gb_per_s']:.0f} GB/s"
        )
    if content["bf16_peak_tflops"] is None:
        lines.append("MFU is left out: the dense bf16 peak of this device is not in the table")
    for scene in content["scenes"]:
        lines += ["", title(scene), *(floor_line(floor) for floor in scene["floors"])]
        head, rows = cells(scene)
        widths = [
            max(len(row[place]) for row in (head, *rows) if place == 0 or len(row) == len(head)) for place in range(len(head))
        ]
        padded = ([f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)] for row in (head, *rows))
        lines += ["  ".join(row).rstrip() for row in padded]
        lines += notes(scene)
    return lines


def markdown(scene: dict) -> str:
    """One scene as a table; statuses stand in the second column."""
    head, rows = cells(scene)
    lines = [head, ["---"] * len(head), *([*row, *[""] * (len(head) - len(row))] for row in rows)]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    below = [*(floor_line(floor) for floor in scene["floors"]), *notes(scene)]
    return "\n".join([*text, "", *below]).rstrip()


def title(scene: dict) -> str:
    """Model, tokens and batch."""
    return f"{scene['model']}, {scene['tokens']} tokens, batch {scene['batch']}; each row in turn with {scene['anchor']}"


def floor_line(floor: dict) -> str:
    """The floor and its parts in milliseconds, with the attention backend that is fastest of those used."""
    attention, total = min(floor["attention_seconds"].items(), key=lambda part: part[1]), min(floor["seconds"].values())
    return (
        f"floor, {floor['phase']} phase: {total * 1e3:.4g} ms = GEMMs {floor['gemm_seconds'] * 1e3:.4g} + attention"
        f" ({attention[0]}) {attention[1] * 1e3:.4g} + optimizer's bytes {floor['optimizer']['seconds'] * 1e3:.4g}"
    )


def memory_lines(scene: dict) -> list[str]:
    """Of each row for which it was looked for: the largest batch that fits, and what an image costs."""
    found = []
    for row in scene["rows"]:
        if "largest" in row:
            asked = row["largest"]
            slope = "-" if asked["bytes_per_image"] is None else f"{asked['bytes_per_image'] / 2**20:.1f}"
            more = "" if asked["finished"] else " or more, the search was cut short"
            found.append(f"{row['name']}: {slope} MiB an image, largest batch {_or_dash(asked['batch'], 'd')}{more}")
    return found


def notes(scene: dict) -> list[str]:
    """What a reader of the table must know."""
    rows = [row for row in scene["rows"] if row["status"] == "measured"]
    found = memory_lines(scene) + [APART] * any(not row["interleaved"] for row in rows)
    if scene["reference_agrees"] is False:
        found.append("reference and published code differ by more than 5%: ratios are to the published code alone")
    return found


def cells(scene: dict) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of text; a row without a measurement has its name and its status only."""
    measured = [row for row in scene["rows"] if row["status"] == "measured"]
    theirs = list(dict.fromkeys(name for row in measured for name in row["faster_than"]))
    head = ["row", "images/s (p20 - p80)", "ms", *(f"x {name}" for name in theirs), "x floor's time", "TFLOP/s", "MFU", "GiB"]
    head += ["launches", *_SHARES, "residual", "attention by"]
    return head, [_cells(row, theirs) for row in scene["rows"]]


def _cells(row: dict, theirs: list[str]) -> list[str]:
    if row["status"] != "measured":
        return [row["name"], row["status"]]
    speed, profile, setup = row["images_per_s"], row["profile"], row["setup"]
    share = profile["share"] or {}
    return [
        row["name"] + "*" * (not row["interleaved"]),
        f"{speed['median']:.4g} ({speed['p20']:.4g} - {speed['p80']:.4g})",
        f"{row['ms_per_step']['median']:.4g}",
        *(_or_dash(row["faster_than"].get(name), ".2f") for name in theirs),
        _or_dash(row["times_floor"], ".2f"),
        f"{row['tflops']:.3g}",
        _or_dash(row["mfu"], ".1%"),
        _or_dash(row["peak_memory_gib"], ".1f"),
        _or_dash(profile["launches"], "d"),
        *(_or_dash(share.get(kind), ".0%") for kind in _SHARES),
        _DTYPES[setup["residual"]],
        setup["attention"],
    ]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
