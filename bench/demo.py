"""SiT, REPA and ERW on the embedded digits at equal training FLOPs: ``python -m erw.bench.demo`` (``make demo``).

Leaves one run folder a method, samples.png, convergence.png and summary.json. Killed and started again, it goes on.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import erw  # noqa: F401
from erw.bench import _curves
from erw.errors import UserError, exits_cleanly
from erw.presets import preset
from train_ds import stop_ranks, train

METHODS = ("sit", "repa", "erw")


def run_methods(out: Path, seed: int) -> dict[str, Path]:
    """Train the digits preset of each method below ``out``; returns their folders."""
    runs = {}
    for name in METHODS:
        config = preset(f"digits-{name}")
        runs[name] = out / name
        print(f"\n{_curves.NAMES[name]}: {config.train.images:,} images", flush=True)
        train(replace(config, train=replace(config.train, out=str(runs[name]), seed=seed, resume="auto")))
    stop_ranks()
    return runs


def check_equal_flops(summary: dict, tolerance: float = 0.02) -> None:
    """Raise where the methods' totals differ by more than ``tolerance``: the comparison would not be one."""
    totals = {name: entry["curve"][-1]["flops"] for name, entry in summary["methods"].items()}
    if max(totals.values()) > (1 + tolerance) * min(totals.values()):
        raise UserError(f"training FLOPs differ by more than {tolerance:.0%}: {totals}; compare curves, not end points")


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for runs and pictures")
    parser.add_argument("--seed", type=int, default=0, help="seed of all three runs")
    options = parser.parse_args()
    runs = run_methods(options.out, options.seed)
    summary = _curves.summarise(runs)
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    _curves.draw_curves(summary, options.out / "convergence.png")
    _curves.draw_samples(runs, options.out / "samples.png")
    print("\n" + _curves.table(summary))
    print("Frechet distance to held-out digits: lower is better. Accuracy: of class-conditional samples, by the judge.")
    for name in ("samples.png", "convergence.png", "summary.json"):
        print(options.out / name)
    check_equal_flops(summary)


if __name__ == "__main__":
    main()
