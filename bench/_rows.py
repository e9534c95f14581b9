"""What a record says of a scene's rows: figures of each, and ratios between them."""

from dataclasses import asdict

from erw.bench._ladder import Row
from erw.bench._measure import Result
from erw.bench._scene import Scene

# The reference and the published code say the same where they differ by less; else only the published code is a measure.
AGREE = 0.05


def row_of(row: Row, found: Result | str, scene: Scene, peak: float | None, floor: float | None) -> dict:
    """One row as plain JSON types; ``peak``: dense bf16 TFLOP/s of the device; ``floor``: seconds. None: not known."""
    start = {"name": row.name, "kind": row.kind, "over": row.over, "setup": asdict(row.setup)}
    if isinstance(found, str):
        return start | {"status": found}
    timing, batch, setup = found.timing, scene.batch, found.built.setup
    tflops = scene.flops_per_image(setup.phase) * batch / timing.median / 1e12
    memory = found.built.peak_bytes
    return start | {
        "status": "measured",
        "setup": asdict(setup),
        "interleaved": found.interleaved,
        "rounds": len(timing.seconds),
        "steps_per_round": found.built.calls,
        "ms_per_step": {name: getattr(timing, name) * 1e3 for name in ("median", "p20", "p80")},
        "images_per_s": {"median": batch / timing.median, "p20": batch / timing.p80, "p80": batch / timing.p20},
        "to_anchor": found.to_anchor,
        "times_floor": timing.median / floor if floor else None,
        "tflops": tflops,
        "mfu": tflops / peak if peak else None,
        "peak_memory_gib": None if memory is None else memory / 2**30,
        "profile": found.profile,
        "last_step": found.numbers,
    }


def relate(scene: dict) -> None:
    """Fill in how many times faster each measured row is than each reference row: ``faster_than``, by name.

    Where the published code was timed and differs from the reference of its dtype by more than `AGREE`, it alone is
    compared with.
    """
    measured = [row for row in scene["rows"] if row["status"] == "measured"]
    theirs = [row for row in measured if row["kind"] == "reference"]
    published = [row for row in theirs if row["setup"]["code"] == "published"]
    scene["reference_agrees"] = None
    for row in published:
        twin = f"reference {row['setup']['precision']}"
        gaps = [abs(faster(row, other) - 1) for other in theirs if other["name"] == twin]
        if gaps:
            scene["reference_agrees"] = gaps[0] <= AGREE
    against = published if scene["reference_agrees"] is False else theirs
    for row in measured:
        row["faster_than"] = {other["name"]: faster(row, other) for other in against}


def faster(row: dict, other: dict) -> float:
    """``other``'s time over ``row``'s: by way of the anchor where both have been measured in turn with it."""
    if row["to_anchor"] and other["to_anchor"]:
        return row["to_anchor"] / other["to_anchor"]
    return other["ms_per_step"]["median"] / row["ms_per_step"]["median"]
