"""What SiT, REPA and ERW know inside, on the digits: ``python -m erw.bench.probe``.

Trains the three presets with checkpoints kept, probes them (`erw probe`), and tries ERW's warm-up at other blocks (`erw probe
--placement`). Writes bench/results/probe-digits.json, docs/pictures/probe-*.png and the tables in docs/probing.md. Killed and
started again, it goes on. With --report, pictures and tables alone, from the record.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import erw  # noqa: F401
from erw.bench._curves import environment
from erw.bench._section import with_section
from erw.errors import UserError, exits_cleanly
from erw.presets import preset
from erw.probe import figures, placement_report, tables
from erw.probe.measure import ProbeConfig, probe
from erw.probe.placement import PlacementConfig, placement
from train_ds import stop_ranks, train

RECORD, PAGE, PICTURES = Path("bench/results/probe-digits.json"), Path("docs/probing.md"), Path("docs/pictures")
METHODS = ("sit", "repa", "erw")
CHECKPOINTS = 8
PLACEMENT = PlacementConfig(blocks=2, images=4_576, full_images=9_600, seeds=(0, 1, 2))


def train_methods(out: Path) -> list[Path]:
    """The digits preset of each method below ``out``, a checkpoint every eighth; returns their folders."""
    for name in METHODS:
        config = preset(f"digits-{name}")
        batch = config.train.batch
        every = -(-config.train.images // (CHECKPOINTS * batch)) * batch
        run = replace(config.train, out=str(out / name), resume="auto", save_every=every, keep=99, tensorboard=False)
        print(f"\n{name}: {config.train.images:,} images", flush=True)
        train(replace(config, train=run, eval=replace(config.eval, name="none")))
    return [out / name for name in METHODS]


def sections(record: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/probing.md by the name of their section."""
    found = record["probe"]
    parts = [tables.protocol_text(found), tables.accuracy_table(found), tables.alignment_table(found, "cknna")]
    parts += [tables.alignment_table(found, "cka"), tables.progression_table(found)]
    hardware, versions = record["hardware"], record["versions"]
    made = f"{hardware['device']}, torch {versions['torch']}. Record: `bench/results/probe-digits.json`."
    below = [part.replace("## ", "### ", 1) for part in parts]
    return {"probe": "\n\n".join([*below, made]), "placement": placement_report.table(record["placement"])}


def report(record: dict[str, Any], page: Path, pictures: Path) -> None:
    """Draw the pictures and write the tables anew."""
    for file, draw in figures.FIGURES.items():
        draw(record["probe"], pictures / f"probe-{file}")
    placement_report.figure(record["placement"], pictures / "probe-placement.png")
    text = page.read_text(encoding="utf-8")
    for name, body in sections(record).items():
        text = with_section(text, name, body, str(page))
    page.write_text(text, encoding="utf-8")


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Train, probe, record and report; or report alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/probe"), help="folder for the runs")
    parser.add_argument("--report", action="store_true", help="pictures and tables from the record that is there")
    options = parser.parse_args(arguments)
    if options.report:
        if not RECORD.exists():
            raise UserError(f"{RECORD} is missing: run python -m erw.bench.probe without --report")
        record = json.loads(RECORD.read_text(encoding="utf-8"))
    else:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        runs = train_methods(options.out)
        found = placement(preset("digits-erw"), PLACEMENT, options.out / "placement", train, device)
        stop_ranks()
        record = {**environment(), "probe": probe(runs, ProbeConfig(), device), "placement": found}
        RECORD.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    report(record, PAGE, PICTURES)
    print(f"{RECORD}\n{PAGE}")


if __name__ == "__main__":
    main()
