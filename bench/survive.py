"""Kill a training job on two ranks a hundred times: ``python -m erw.bench.survive --kills 100 --out RECORD.json``

Three small runs on the digits, each method and three ZeRO stages, are killed with SIGKILL (both ranks or one of them) at random
moments: anywhere, while a checkpoint is written, at ERW's hand-over, while starting. Each is started again with the same
command until it ends, then begun anew. An undisturbed run of each is made first; its checkpoints' digests are what all is
compared with:

- every checkpoint that is there after a kill, and every one that was announced is there;
- what the restarted engine holds, read back: weights, moments and EMA, bit for bit that of the newest checkpoint;
- the rows of metrics.jsonl when a run has ended: each image once, the same losses.

The record is written after each kill; started again, the benchmark goes on with it. Exit code 1 where anything differed.
"""

import argparse
import json
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from erw.bench._kills import CASES, EVERY, MOMENTS, RANKS, STEPS, Case
from erw.environment import fingerprint
from erw.errors import exits_cleanly
from erw.files import json_bytes, whole


def summary(kills: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over the ``kills``, and what was trained again."""
    counts: dict[str, dict[str, int]] = {}
    for what in ("case", "moment", "phase"):
        counts[what] = {}
        for kill in kills:
            counts[what][kill[what]] = counts[what].get(kill[what], 0) + 1
    again = [max(0, kill["trained"] - kill["newest"]) for kill in kills]
    return {
        "kills": len(kills),
        "faults": sum(len(kill["faults"]) for kill in kills),
        **counts,
        "with a checkpoint half written": sum(kill["partial"] for kill in kills),
        "of one rank alone": sum(len(kill["killed"]) == 1 for kill in kills),
        "images trained again, most": max(again, default=0),
    }


def survive(kills: int, work: Path, out: Path, seed: int) -> dict[str, Any]:
    """Kill until the record in ``out`` holds ``kills`` of them, case by case in turn. Returns the record."""
    record = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"kills": [], "restarts": 0}
    cases = [Case(name, work) for name in CASES]
    for case in cases:
        case.undisturbed()
    while len(record["kills"]) < kills:
        count = len(record["kills"])
        case, chance = cases[count % len(cases)], random.Random(f"{seed} {count} {time.time_ns()}")
        names = [name for name in MOMENTS if name != "hand-over" or (case.boundaries and case.newest() < case.boundaries[0])]
        kill = case.kill(chance.choices(names, [MOMENTS[name] for name in names])[0], chance)
        record["restarts"] += case.restarts
        case.restarts = 0
        if kill is not None:
            record["kills"].append(asdict(kill))
            print(f"{count + 1}/{kills}: {kill}", flush=True)
        settings = {"steps": STEPS, "save_every": EVERY, "ranks": RANKS, "cases": CASES}
        record |= {"settings": settings, "summary": summary(record["kills"]), **fingerprint(torch.device("cpu"))}
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole(out) as file:
            file.write(json_bytes(record))
    return record


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how many the record holds at the end")
    parser.add_argument("--work", type=Path, default=Path("runs/survive"), help="folder of the runs")
    parser.add_argument("--out", type=Path, required=True, help="the record, gone on with where it exists")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    record = survive(options.kills, options.work, options.out, options.seed)
    print(json.dumps(record["summary"], indent=1))
    if record["summary"]["faults"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
