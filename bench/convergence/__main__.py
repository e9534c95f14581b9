"""What a GPU-hour buys with each method: ``python -m erw.bench.convergence STUDY``.

    digits         SiT, REPA and ERW on handwritten digits, five seeds at equal FLOPs; minutes a run on a CPU
    digits-erw     ERW's own knobs, one at a time
    cifar10        one part for ten minutes of a GPU, at equal seconds; cifar10-long for hours; cifar10-cpu is a small one for
                   a CPU. python -m erw.bench.cifar10 prepares them
    imagenet256    the papers' table: --dry-run prints commands, GPU-hours and disk

A study is a file (bench/studies). Killed, it goes on; started twice, the two share the runs. ``--dry-run`` says what would be
run.
"""

import argparse
from pathlib import Path

import erw  # noqa: F401
from erw.bench._curves import draw_samples, environment
from erw.bench.convergence import dry_run, figures, pilot, report, sweep, words
from erw.bench.convergence.plan import plan
from erw.bench.convergence.runs import Runs, without_passing
from erw.bench.convergence.study import Study, names, read_study
from erw.config import TrainConfig
from erw.errors import UserError, exits_cleanly
from erw.settings import nearest
from train_ds import stop_ranks


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m erw.bench.convergence", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("study", help=f"{', '.join(names())}, or a .toml file")
    parser.add_argument("--out", type=Path, help="folder for the runs (default runs/studies/STUDY)")
    parser.add_argument("--record", type=Path, help="default bench/results/study-STUDY.json")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these, with another --record")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the study's, with another --record")
    parser.add_argument("--share", type=float, default=1.0, help="of the budget and of the judged samples, for trials")
    parser.add_argument("--data", type=Path, help="folder of the dataset, for studies of one (--data.path)")
    parser.add_argument("--teacher", help="instead of the variants' own, where they align (--teacher.name)")
    parser.add_argument("--judge", type=Path, help="statistics file that samples are compared with (--eval.reference)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run and what it costs")
    parser.add_argument("--gpu", help="with --dry-run: GPU-hours and disk on this kind of GPU, as erw plan calls it (h200)")
    parser.add_argument("--gpus", type=int, default=8, help="with --gpu: how many (default 8)")
    parser.add_argument("--sweep", action="store_true", help="run the sweep that chooses settings, not the study")
    parser.add_argument("--sweep-record", type=Path, help="default bench/results/sweep-STUDY.json")
    parser.add_argument("--samples", type=Path, metavar="FILE",
                        help="draw samples of the first seed's runs, drawn as for the judge; train nothing")  # fmt: skip
    parser.add_argument("--report", action="store_true", help="write docs/studies/STUDY.md from the record, run nothing")
    return parser.parse_args(arguments)


def _chosen(study: Study, options: argparse.Namespace) -> tuple[list[str], list[int]]:
    """Variants and seeds. Raises `UserError` for unknown or repeated ones, and where part of a study would be its record."""
    variants, seeds = options.variants or list(study.variants), options.seeds or list(study.seeds)
    for name in variants:
        if name not in study.variants:
            raise UserError(f"--variants: '{name}' is not known; {nearest(name, study.variants)}")
    if len(set(variants)) < len(variants):
        raise UserError(f"--variants names one twice: {' '.join(variants)}")
    if len(set(seeds)) < max(2, len(seeds)) or min(seeds) < 0:
        raise UserError("--seeds must be two or more different numbers, none negative: intervals are taken over them")
    part = options.share != 1 or set(variants) != set(study.variants) or seeds != list(study.seeds)
    if part and options.record is None and not options.dry_run:
        raise UserError(f"the record of {study.name} is for all of it at the whole budget: name another file with --record")
    return variants, seeds


def _configs(study: Study, variants: list[str], options: argparse.Namespace, out: Path) -> dict[str, TrainConfig]:
    rates = None
    if study.budget.unit == "seconds":
        out.mkdir(parents=True, exist_ok=True)
        rates = pilot.rates(study, out / "pilot.json", without_passing(environment()))
    configs = plan(study, options.share, rates)
    return {name: configs[name] for name in variants}


def _run(study: Study, options: argparse.Namespace, out: Path, record: Path) -> None:
    variants, seeds = _chosen(study, options)
    runs = Runs(study, out, record, _configs(study, variants, options, out), seeds, options.share)
    runs.run()
    stop_ranks()
    if runs.missing():
        print(f"\n{runs.missing()} runs are with another process; it writes the report, or --report does")
        return
    found = runs.record()
    print(f"\n{words.NAMES.get(study.quality, study.quality)}, lower is better: {' < '.join(figures.ranking(found))}")
    # The seconds of a few steps say nothing.
    for line in words.lines(found, None if options.share == 1 else ("images",)):
        print(line)
    print(record)
    if options.record is None:
        print("\n".join(map(str, report.write(study, found))))


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Run the study, or do the one thing that an option asks for."""
    options = _options(arguments)
    study = read_study(options.study)
    study = study.on(options.data, options.teacher, options.judge)
    out = options.out or Path("runs/studies") / study.name
    record = options.record or report.record_file(study.name)
    if not record.parent.is_dir():
        raise UserError(f"--record {record}: there is no folder {record.parent}: make it, or run from the project's root")
    if options.dry_run:
        variants, seeds = _chosen(study, options)
        gpu = options.gpu or ("h200" if study.budget.unit == "preset" else None)
        machine = dry_run.Machine(gpu, options.gpus) if gpu else None
        print(dry_run.text(study, variants, seeds, options.share, machine))
    elif options.samples is not None:
        variants, seeds = _chosen(study, options)
        draw_samples({study.labels[name]: out / f"{name}-{seeds[0]}" for name in variants}, options.samples)
        print(options.samples)
    elif options.sweep:
        sweep.sweep(study, options.sweep_record or report.sweep_file(study.name))
        stop_ranks()
    elif options.report:
        found = report.read_record(record, f"python -m erw.bench.convergence {study.name}")
        print("\n".join(map(str, report.write(study, found))))
    else:
        _run(study, options, out, record)


if __name__ == "__main__":
    main()
