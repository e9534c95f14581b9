"""What each store does where a run is resumed and where a bit on the disk has flipped: tried, not looked up."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from erw.bench._stores_base import Candidate, Reading
from erw.bench._stores_cache import files_in
from erw.bench._stores_child import Failed, alone, damaged, labels, together
from erw.bench._stores_rows import Rows, as_numpy

SMALL = Rows(2048, latents=(8, 8, 8))
_SHARD, _BATCH, _STOP, _MIX = 128, 64, 13, 512


def faults(store: Candidate, work: Path, method: str = "forkserver") -> dict[str, str]:
    """``resume``, ``resume_other_ranks``, ``flipped_bit``: words, as the table has them."""
    folder = work / "small"
    alone(store.write, folder, SMALL, _SHARD, method=method)
    reading = Reading("block", _BATCH, store.resume, _MIX)
    found = resume(store, folder, reading, method)
    file = flip(folder)
    try:
        changed = alone(damaged, store.name, folder, SMALL, dataclasses.replace(reading, workers=0), method=method)
        outcome = f"silent: {len(changed)} wrong row passed on" if changed else "silent: nothing seen"
    except Failed as error:
        outcome = str(error) if str(error).startswith(("crash", "hangs")) else _named(str(error), file)
    shutil.rmtree(folder)
    return found | {"flipped_bit": outcome}


def _named(message: str, file: Path) -> str:
    message = message.replace(f"{file.parent}/", "")  # where it was measured is nobody's business
    return f"{'error that names the file' if file.name in message else 'error that names no file'}: {message}"


def resume(store: Candidate, folder: Path, reading: Reading, method: str) -> dict[str, str]:
    """An epoch interrupted after some batches, begun again by new processes: one rank as before, then two."""
    try:
        whole = alone(labels, store.name, folder, SMALL, reading, _STOP, None, method=method)
    except Failed as error:
        reason = str(error)
        words = "no: no state to save" if reason.startswith("NotImplementedError") else f"no: {reason}"
        return {"resume": words, "resume_other_ranks": words}
    rest = whole["labels"][_STOP:]
    found = {}
    for name, ranks in (("resume", 1), ("resume_other_ranks", 2)):
        meeting = folder.parent / f"meeting-{ranks}"
        works = [
            (labels, (store.name, folder, SMALL, _at(reading, whole["state"], rank, ranks), None, meeting))
            for rank in range(ranks)
        ]
        try:
            parts = together(works, method)
            found[name] = compared([part["labels"] for part in parts], rest)
        except Failed as error:
            found[name] = f"no: {error}"
        meeting.unlink(missing_ok=True)
    return found


def _at(reading: Reading, state: Any, rank: int, ranks: int) -> Reading:
    return dataclasses.replace(reading, batch=reading.batch // ranks, rank=rank, ranks=ranks, state=state)


def compared(parts: list[list[list[int]]], rest: list[list[int]]) -> str:
    """``parts``: of each rank the labels of its batches; ``rest``: the batches of the interrupted epoch that were left."""
    got = [sorted(sum(step, [])) for step in zip(*parts, strict=False)]
    flat, wanted = [n for part in parts for batch in part for n in batch], [n for batch in rest for n in batch]
    if (parts[0] == rest) if len(parts) == 1 else (sorted(flat) == sorted(wanted) and got == [sorted(batch) for batch in rest]):
        return "yes"
    if sorted(flat) == sorted(wanted):
        return "same rows, other batches"
    again, left = len(flat) - len(set(flat) & set(wanted)), len(set(wanted) - set(flat))
    return f"no: {again} rows repeated, {left} left out of {len(wanted)}"


def flip(folder: Path, number: int = 1000) -> Path:
    """Change one bit within the latents of a row, wherever the store has put them. Returns the file."""
    wanted = as_numpy(SMALL.columns(number, 1)["latents"]).tobytes()
    for file in files_in(folder):
        content = bytearray(file.read_bytes())
        place = content.find(wanted)
        if place >= 0:
            content[place + len(wanted) // 2] ^= 1
            file.write_bytes(content)
            return file
    raise AssertionError(f"no file of {folder} holds row {number} as it was written")
