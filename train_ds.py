"""Train a diffusion transformer: python|torchrun|deepspeed train_ds.py PRESET [--section.field VALUE ...]

python train_ds.py digits-erw
torchrun --nproc-per-node 8 train_ds.py in256-erw-xl2 --data.path /data/imagenet256
python train_ds.py in256-repa-b2 --dry-run
"""

import sys
from contextlib import closing

import erw  # noqa: F401  (first: it drops this folder from sys.path, where kernels/ would hide another package)
from erw.build import build_step, fit_to_data, open_data
from erw.config import TrainConfig
from erw.data.stream import Dataset, stream
from erw.engine.config import micro_batch
from erw.engine.engine import Engine
from erw.engine.ranks import Ranks, start_ranks, stop_ranks
from erw.engine.watch import Watch
from erw.errors import Stopped, exits_cleanly
from erw.evaluate.running import RunningEvaluation
from erw.options import parse
from erw.plan import Costs, last_alignment, plan_text
from erw.profile.recorder import Profile
from erw.repeatable import repeatable
from erw.run import Run
from erw.settle import settle
from erw.teachers.features import FeatureSource


@repeatable
def train(config: TrainConfig) -> None:
    """One run, from its first image or from a checkpoint to its last, on every rank."""
    config, dataset = open_data(config)
    ranks = start_ranks(config.engine.timeout)
    with Watch(ranks, config.engine.timeout) as watch:
        train_watched(config, dataset, ranks, watch)


def train_watched(config: TrainConfig, dataset: Dataset, ranks: Ranks, watch: Watch) -> None:
    """`train`, while ``watch`` looks after the ranks. Raises `Stopped` where a signal asks for it."""
    micro = micro_batch(config.train.batch, config.engine.accumulation, ranks.count)
    config, space = fit_to_data(config, dataset)
    config, decisions = settle(config, ranks)
    run = Run(config, ranks, watch.hosts)
    watch.before_exit = run.abandon
    for line in decisions:
        run.telemetry.say(line)
    if run.complete:
        run.finish()
        return

    features = FeatureSource(
        config.active_teacher, dataset, ranks.device, config.method.group, micro, config.model.grid, last_alignment(config)
    )
    with run.accounts.apart("teacher"):
        features.prepare(run.images)
    costs = Costs(config, features)
    evaluation, profile = RunningEvaluation(config, ranks), Profile(run)

    method, batch_size, seed = config.method, config.train.batch, config.train.seed
    phase = run.phase
    engine = build_engine(config, phase, ranks, None, run.initial_weights())
    run.restore(engine)
    batches = stream(
        dataset, seed, run.images, batch_size, micro, ranks.rank, ranks.count,
        workers=config.data.workers, pin=ranks.device.type == "cuda", wanted=features.wanted, ahead=config.data.ahead,
    )  # fmt: skip

    def part(name: str):
        """Around each part of a step: says where this rank is, times it, and profiles it where the step is profiled."""
        watch.mark(name)
        return run.parts.part(name, run.gauges.part(name, profile.part(name)))

    with closing(batches):
        run.accounts.restart_clock()
        while not run.complete:
            if why := watch.stops(run.images, batch_size):
                raise run.stop(engine, why)
            upcoming = method.phase(run.images)
            profile.step(upcoming)
            if upcoming.name != phase.name:
                watch.away("hand-over", cold=True)
                engine = hand_over(config, run, engine, upcoming)
            phase = engine.step_module.phase = upcoming

            losses = []
            for _ in range(config.engine.accumulation):
                with part("data wait"):
                    batch = next(batches)
                with part("copy"):
                    batch = batch.to(ranks.device)
                with part("draw"):
                    latents = space.draw(batch.latents, seed, batch.index)
                    inputs = config.objective.draw(phase, seed, latents, batch.labels, batch.index, config.model.num_classes)
                with part("teacher"):
                    target = features(batch) if phase.aligns else None
                with part("forward"):
                    losses.append(engine(inputs.x, inputs.t, inputs.y, inputs.target, target))
                with part("backward"):
                    engine.backward(losses[-1]["loss"])
                with part("optimizer"):
                    engine.step(run.lr_at(run.images))

            with part("report"):
                run.advance(phase, batch_size, batch_size * costs.per_image(phase), losses, engine)
            watch.away("evaluation and saving")
            if phase.denoise and (run.complete or run.due(config.eval.every)):
                evaluation.evaluate(run, engine)
            if run.complete or run.due(config.train.save_every):
                run.save(engine)

    profile.close()
    run.finish()
    engine.release()


def build_engine(config: TrainConfig, phase, ranks, carried, initial=None) -> Engine:
    """The engine of one phase. A phase that holds only a prefix of the model stays at ZeRO-2 or below."""
    top_stage = 3 if phase.depth is None else 2
    step = build_step(config, phase, carried, initial)
    return Engine(step, config.engine, config.optim, config.train.batch, ranks, top_stage)


def hand_over(config: TrainConfig, run: Run, engine: Engine, upcoming) -> Engine:
    """End a phase: checkpoint it, release its engine, start the next from its fp32 weights with fresh optimizer and EMA."""
    run.save(engine, wait=True)
    weights = engine.read("weights")
    engine.release()
    run.begin_phase(upcoming, weights)
    return build_engine(config, upcoming, run.ranks, weights, run.initial_weights())


@exits_cleanly
def train_and_leave(*configs: TrainConfig) -> None:
    """`train` each, as a process of its own: leaves the ranks in order, and ends with an exit code where it cannot go on."""
    try:
        for config in configs:
            train(config)
    except Stopped:
        stop_ranks()
        raise
    stop_ranks()


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, then print the plan or train."""
    config, dry_run = parse(sys.argv[1:] if arguments is None else arguments)
    if dry_run:
        if config.data.fit:
            config, _ = open_data(config)
        config.check()
        print(plan_text(config))
        return
    train_and_leave(config)


if __name__ == "__main__":
    main()
