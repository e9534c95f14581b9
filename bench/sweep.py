"""Choose each method's own settings on the digits: ``python -m erw.bench.sweep`` writes bench/results/sweep-digits.json.

Every method gets the same: eight trials on two seeds, then the best three of them on three seeds more, at the demo's FLOPs.
The best mean Frechet distance over the five seeds goes into the preset. No result uses these seeds. Killed, it goes on.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import erw  # noqa: F401
from erw.align import Erw, Plain, Repa
from erw.bench.convergence import environment, read_curve
from erw.config import TrainConfig
from erw.errors import UserError, exits_cleanly
from erw.presets import digits_run
from train_ds import stop_ranks, train

FIRST_SEEDS, MORE_SEEDS = (100, 101), (102, 103, 104)
GO_ON = 3
NOTE = "seconds are not comparable between trials: other work ran beside them; distances are"


def _sit(lr: float) -> TrainConfig:
    return digits_run("sweep", Plain(), lr)


def _repa(depth: int, coefficient: float, lr: float) -> TrainConfig:
    return digits_run("sweep", Repa(depth=depth, coefficient=coefficient, projector_width=96), lr)


def _erw(depth: int, projection_depth: int, coefficient: float, warmup_share: float, lr: float) -> TrainConfig:
    method = Erw(depth=depth, projection_depth=projection_depth, coefficient=coefficient, projector_width=96)
    return digits_run("sweep", method, lr, warmup_share)


BUILDERS = {"sit": _sit, "repa": _repa, "erw": _erw}
TRIALS: dict[str, list[dict[str, float]]] = {
    "sit": [{"lr": lr} for lr in (1.5e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3, 8e-3, 10e-3)],
    "repa": [
        {"depth": depth, "coefficient": coefficient, "lr": lr}
        for depth, coefficient, lr in (
            (1, 1.0, 4e-3), (2, 0.5, 4e-3), (2, 1.0, 4e-3), (2, 2.0, 4e-3), (3, 1.0, 4e-3), (2, 1.0, 3e-3), (2, 1.0, 6e-3),
            (2, 2.0, 6e-3),
        )
    ],
    "erw": [
        {"depth": depth, "projection_depth": projection, "coefficient": coefficient, "warmup_share": share, "lr": lr}
        for depth, projection, coefficient, share, lr in (
            (2, 2, 1.0, 0.05, 4e-3), (2, 3, 1.0, 0.05, 4e-3), (2, 2, 2.0, 0.05, 4e-3), (2, 3, 1.0, 0.1, 4e-3),
            (2, 2, 1.0, 0.2, 4e-3), (3, 3, 1.0, 0.05, 4e-3), (2, 2, 1.0, 0.05, 6e-3), (2, 2, 2.0, 0.05, 6e-3),
        )
    ],
}  # fmt: skip


def run_once(config: TrainConfig, seed: int) -> dict[str, float]:
    """Train once and return the last evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        run = replace(config.train, out=folder, seed=seed, tensorboard=False)
        train(replace(config, train=run, eval=replace(config.eval, every=0)))
        return {"seed": seed, **read_curve(Path(folder))[-1]}


def mean(row: dict, seeds: tuple[int, ...] = FIRST_SEEDS + MORE_SEEDS) -> float:
    """Mean Frechet distance of a trial over those of ``seeds`` that it has seen."""
    return statistics.fmean(run["frechet"] for run in row["runs"] if run["seed"] in seeds)


def fill(row: dict, config: TrainConfig, seeds: tuple[int, ...], save) -> None:
    """Run ``config`` on those of ``seeds`` that ``row`` does not have yet."""
    for seed in seeds:
        if seed not in {run["seed"] for run in row["runs"]}:
            row["runs"].append(run_once(config, seed))
            row["frechet"] = mean(row)
            save()


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/results/sweep-digits.json"))
    out = parser.parse_args().out
    record = {"chosen_by": "mean Frechet distance", "note": NOTE, **environment(), "methods": {}}
    if out.exists():
        record = json.loads(out.read_text(encoding="utf-8"))

    def save() -> None:
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    for name, settings in TRIALS.items():
        rows = record["methods"].setdefault(name, [{"settings": chosen, "runs": []} for chosen in settings])
        if any(row["settings"] not in settings for row in rows):
            raise UserError(f"{out} holds another sweep: name another file with --out")
        for row in rows:
            fill(row, BUILDERS[name](**row["settings"]), FIRST_SEEDS, save)
        rows.sort(key=lambda row: mean(row, FIRST_SEEDS))
        for row in rows[:GO_ON]:
            fill(row, BUILDERS[name](**row["settings"]), MORE_SEEDS, save)
        rows[:GO_ON] = sorted(rows[:GO_ON], key=mean)
        save()
        print(name, rows[0]["settings"], f"{rows[0]['frechet']:.3f}", flush=True)
    stop_ranks()


if __name__ == "__main__":
    main()
