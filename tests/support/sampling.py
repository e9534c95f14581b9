"""Sampling and evaluation of one checkpoint on as many ranks as there are.

    torchrun --nproc-per-node 3 tests/support/sampling.py RUN OUT

OUT gets npz/ and png/, as `erw sample` writes them, and eval/, as an evaluation beside training writes it.
"""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import erw  # noqa: F401
from erw import cli
from erw.build import build_step
from erw.checkpoint import read_meta, read_tensors
from erw.config import config_from_dict
from erw.engine.ranks import Ranks, join_ranks
from erw.evaluate.running import RunningEvaluation
from erw.run import Run
from erw.sample.job import SampleJob, run_job

OPTIONS = ["--count", "26", "--batch", "12", "--guidance", "1.5", "--labels", "random"]


def evaluate(run: Path, out: Path, ranks: Ranks) -> None:
    """Judge 26 images of the EMA in ``run``; an engine that holds it is all that is not real here."""
    (checkpoint,) = (run / "checkpoints").iterdir()
    config = config_from_dict(read_meta(checkpoint).config)
    train = replace(config.train, out=str(out), resume="none", tensorboard=False)
    config = replace(config, train=train, eval=replace(config.eval, name="digits", count=26, batch=12))
    ema = read_tensors(checkpoint, "ema")
    step = build_step(config, config.method.phase(0))
    engine = SimpleNamespace(read=lambda key, device: {k: v.to(device) for k, v in ema.items()}, step_module=step)
    place = Run(config, ranks)
    RunningEvaluation(config, ranks).evaluate(place, engine)
    place.finish()


if __name__ == "__main__":
    run, out = map(Path, sys.argv[1:])
    ranks = join_ranks()
    evaluate(run, out / "eval", ranks)
    run_job(SampleJob(path=run, out=out / "png", format="png", count=26, batch=12), ranks)
    cli.main(["sample", str(run), "--out", str(out / "npz"), *OPTIONS])  # last, for it leaves the group
