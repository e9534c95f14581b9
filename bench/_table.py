"""The short table that a benchmark ends with."""

_COLUMNS = "{:<6} {:>5}  {:<24} {:>26} {:>9} {:>6} {:>8} {:>6} {:>8}"
HEADER = _COLUMNS.format("model", "batch", "contestant", "images/s (p20 - p80)", "ms/step", "GiB", "TFLOP/s", "MFU", "speedup")


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
    lines.append(HEADER)
    rows = [(pairing, row) for pairing in content["pairings"] for row in pairing["rows"]]
    lines += [_line(pairing, row) for pairing, row in rows]
    if any(row["status"] == "measured" and not row["interleaved"] for _, row in rows):
        lines.append("* the two did not fit side by side and were measured one after the other")
    return lines


def _line(pairing: dict, row: dict) -> str:
    start = (pairing["model"], pairing["batch"], row["contestant"])
    if row["status"] != "measured":
        return "{:<6} {:>5}  {:<24} {}".format(*start, row["status"])
    speed = row["images_per_s"]
    memory = "-" if row["peak_memory_gib"] is None else f"{row['peak_memory_gib']:.1f}"
    mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
    faster = ""
    if row["contestant"].startswith("ours") and pairing["speedup"]:
        faster = f"{pairing['speedup']['value']:.2f}x" + ("" if row["interleaved"] else "*")
    spread = f"{speed['median']:.1f} ({speed['p20']:.1f} - {speed['p80']:.1f})"
    milliseconds, tflops = f"{row['ms_per_step']['median']:.2f}", f"{row['tflops']:.3g}"
    return _COLUMNS.format(*start, spread, milliseconds, memory, tflops, mfu, faster).rstrip()
