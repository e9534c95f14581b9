"""Choose each method's own settings on the digits: ``python -m erw.bench.sweep`` writes bench/results/sweep-digits.json.

Six trials a method on a seed that no result uses, at the demo's FLOPs. The best by Frechet distance goes into the preset.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import erw  # noqa: F401
from erw.align import Erw, Plain, Repa
from erw.bench.convergence import environment, read_curve
from erw.config import TrainConfig
from erw.presets import digits_run
from train_ds import stop_ranks, train

SEEDS = (100,)


def _erw(depth: int, projection: int, coefficient: float, lr: float, share: float) -> TrainConfig:
    method = Erw(depth=depth, projection_depth=projection, coefficient=coefficient, projector_width=96)
    return digits_run("sweep", method, lr, share)


def _repa(depth: int, coefficient: float, lr: float) -> TrainConfig:
    return digits_run("sweep", Repa(depth=depth, coefficient=coefficient, projector_width=96), lr)


def trials() -> dict[str, list[tuple[dict, TrainConfig]]]:
    """For each method, six times (what was chosen, the settings that follow)."""
    lrs = (2e-3, 4e-3)
    sit = [({"lr": lr}, digits_run("sweep", Plain(), lr)) for lr in (1e-3, 2e-3, 3e-3, 4e-3, 6e-3, 8e-3)]
    repa = [({"depth": d, "coefficient": c, "lr": lr}, _repa(d, c, lr))
            for lr in lrs for d, c in ((2, 0.5), (2, 1.0), (3, 1.0))]  # fmt: skip
    warm = [({"depth": d, "projection_depth": p, "coefficient": c, "warmup_share": s, "lr": lr}, _erw(d, p, c, lr, s))
           for lr in lrs for d, p, c, s in ((2, 2, 0.5, 0.1), (3, 3, 1.0, 0.1), (2, 3, 1.0, 0.05))]  # fmt: skip
    return {"sit": sit, "repa": repa, "erw": warm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/results/sweep-digits.json"))
    out = parser.parse_args().out
    note = "seconds are not comparable between trials where the machine was shared"
    record = {"seeds": SEEDS, "note": note, "chosen_by": "frechet", **environment(), "methods": {}}
    for name, entries in trials().items():
        rows = record["methods"].setdefault(name, [])
        for chosen, config in entries:
            for seed in SEEDS:
                with tempfile.TemporaryDirectory() as folder:
                    run = replace(config.train, out=folder, seed=seed, tensorboard=False)
                    train(replace(config, train=run, eval=replace(config.eval, every=0)))
                    rows.append({**chosen, "seed": seed, **read_curve(Path(folder))[-1]})
            print(name, rows[-1], flush=True)
            out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        rows.sort(key=lambda row: row["frechet"])
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    stop_ranks()


if __name__ == "__main__":
    main()
