"""How far plans are off, and the tables of docs/plan.md.

``python -m erw.bench.plan --measure`` trains small models here, under one and two ranks, and writes what was measured beside
what was forecast (`bench/results/plan-error.json`), which ``erw plan`` prints. ``--write docs/plan.md`` makes the tables.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from erw.bench._section import with_section
from erw.config import TrainConfig
from erw.environment import fingerprint
from erw.errors import UserError, exits_cleanly
from erw.files import json_bytes, whole
from erw.optim import STATE_KEYS
from erw.plan.error import NAME
from erw.plan.forecast import Forecaster
from erw.plan.network import Network
from erw.plan.rates import RECORDS, rates_of
from erw.plan.report import table
from erw.presets import preset
from erw.settings import to_dict

_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# (ranks, ZeRO, precision, recompute, accumulation): what decides memory.
COMBINATIONS = (
    (1, "zero0", "fp32", "none", 1),
    (1, "zero1", "bf16", "selective", 1),
    (2, "zero0", "fp32", "full", 1),
    (2, "zero1", "bf16", "none", 1),
    (2, "zero2", "bf16", "full", 2),
    (2, "zero3", "bf16", "none", 1),
)


def configs(base: TrainConfig, ranks: int) -> list[TrainConfig]:
    """``base`` in each of the `COMBINATIONS` for so many ranks."""
    found = []
    for count, stage, precision, recompute, accumulation in COMBINATIONS:
        if count == ranks:
            knobs = {"ds_config": stage, "precision": precision, "recompute": recompute, "accumulation": accumulation}
            found.append(replace(base, engine=replace(base.engine, **knobs, ops="reference", attention="sdpa")))
    return found


def live(jobs: list[TrainConfig], ranks: int) -> list[list[dict]]:
    """[rank][job]: what `erw.bench._plan_live` found. Raises RuntimeError with its last lines where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "jobs.json")
        file.write_text(json.dumps([to_dict(job) for job in jobs]), encoding="utf-8")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [sys.executable, *launcher, "-m", "erw.bench._plan_live", str(file), f"{folder}/found"]
        kept = {name: value for name, value in os.environ.items() if name not in _LAUNCHER}
        done = subprocess.run(command, capture_output=True, text=True, env=kept, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        return [json.loads(Path(f"{folder}/found.{rank}").read_text(encoding="utf-8")) for rank in range(ranks)]


def compare(forecaster: Forecaster, config: TrainConfig, ranks: int, found: list[dict]) -> dict:
    """One row of the record: forecast and measured bytes, of the fullest rank, and seconds. Inputs are made before, so they
    are in neither."""
    rates = forecaster.rates
    forecast = forecaster.at(Network(ranks, ranks, rates.link, 50.0))
    main = forecast.main
    memory, measured = main.memory, {
        "saved": max(rank["saved"] for rank in found),
        "peak": max(rank["peak"] for rank in found),
        "optimizer": sum(found[0][key] for key in STATE_KEYS),
        "ema": found[0]["ema"],
        "seconds": found[0]["seconds"],
    }  # fmt: skip
    inputs = found[0]["inputs"]
    predicted = {
        "saved": main.trace.saved - inputs, "peak": max(memory.backward - inputs, memory.step),
        "optimizer": memory.moments + memory.ema, "ema": memory.ema, "seconds": main.seconds,
    }  # fmt: skip
    if main.sharding.stage == 3 and ranks > 1:
        del measured["saved"]  # gathered weights are among what a forward leaves there
    if not rates.gpu:
        del measured["seconds"]  # of seconds a step, of models this small: overhead, and the other work of the machine
    engine = config.engine
    shape = f"depth {config.model.depth}, width {config.model.width}, batch {config.train.batch}"
    setting = {"model": shape, "ranks": ranks, "ds_config": engine.ds_config, "precision": engine.precision,
               "recompute": engine.recompute, "accumulation": engine.accumulation}  # fmt: skip
    return {"setting": setting, "measured": measured, "forecast": {key: predicted[key] for key in measured}}


def small() -> TrainConfig:
    """Six blocks of SiT-S/2 with REPA: fits anywhere, and blocks are most of it."""
    base = preset("in256-repa-s2")
    return replace(
        base, model=replace(base.model, depth=6), method=replace(base.method, depth=2), train=replace(base.train, batch=8)
    )


def measure(base: TrainConfig, gpu: str) -> dict:
    """The record's content. On a machine with too few GPUs for two ranks, one rank's rows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    most = torch.cuda.device_count() if device.type == "cuda" else 2
    rows, rates = [], rates_of(gpu)
    for ranks in range(1, min(2, most) + 1):
        jobs = configs(base, ranks)
        for index, (job, found) in enumerate(zip(jobs, zip(*live(jobs, ranks), strict=True), strict=True)):
            rows.append(compare(Forecaster(jobs[index], rates), job, ranks, list(found)))
    return {"what": "plan error", "device_type": device.type, "environment": fingerprint(device), "rows": rows}


def tables(name: str) -> str:
    """The papers' setting on eight H200 and what becomes of it on more."""
    rates = rates_of("h200")
    config = preset(name)
    network = Network(8, rates.per_node, rates.link, 50.0 * rates.per_node)
    text = table(Forecaster(config, rates), network, [1, 8, 64, 256, 1024, 4096], ["zero1", "zero2", "zero3"], 256, 2.0)
    return f"`{name}`, h200; {rates.source}. 2.00 a GPU-hour.\n\n{text}"


def error_table(content: dict) -> str:
    """The record of `measure` as Markdown: forecast over measured."""
    columns = ("ranks", "DeepSpeed", "precision", "recompute", "accumulation", "activations", "step's peak",
               "optimizer and EMA", "time")  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in content["rows"]:
        at, have, said = row["setting"], row["measured"], row["forecast"]
        shares = [f"{said[k] / have[k]:.3f}" if k in have else "-" for k in ("saved", "peak", "optimizer", "seconds")]
        lines.append(
            f"| {at['ranks']} | {at['ds_config']} | {at['precision']} | {at['recompute']} | {at['accumulation']} | "
            + " | ".join(shares) + " |"
        )  # fmt: skip
    made, shape = content["environment"], content["rows"][0]["setting"]["model"]
    lines.append(f"\nForecast over measured: {made['device']}, {shape}, torch {made['torch']}, deepspeed {made['deepspeed']}.")
    return "\n".join(lines)


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m erw.bench.plan", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="train small models here and record how far the plan was off")
    parser.add_argument("--gpu", default="cpu", help="what this machine is, for --measure (default cpu)")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the record (default bench/results)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write <!-- plan NAME --> of this file")
    options = parser.parse_args(arguments)
    if not options.measure and options.write is None:
        raise UserError("nothing to do: give --measure or --write docs/plan.md")
    if options.measure:
        with whole(options.records / NAME) as file:
            file.write(json_bytes(measure(small(), options.gpu)))
        print(options.records / NAME)
    if options.write is not None:
        text = options.write.read_text(encoding="utf-8")
        file = options.records / NAME
        record = error_table(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else "Not measured."
        text = with_section(text, "plan error", record, str(options.write))
        for name in ("in256-sit-xl2", "in256-erw-xl2"):
            text = with_section(text, f"plan {name}", tables(name), str(options.write))
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
