"""What checkpoints cost the loop, written in it and in the background: ``python -m erw.bench.checkpoint --out RECORD.json``

The real loop trains a published model on random latents, without checkpoints between, with ones that it waits for
(``--train.async_save false``) and with ones that it does not, in turn. Per checkpoint: the seconds that the loop stands still,
and what the whole run took longer than the one without, which also has what writing takes from training while both go on. The
last checkpoint, which a run always writes and waits for, is in none of these figures. ``--write PAGE`` makes the page's table
anew.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from erw.bench._section import with_section
from erw.config import TrainConfig
from erw.environment import fingerprint
from erw.errors import exits_cleanly
from erw.files import json_bytes, whole
from erw.presets import preset

MODES = {"none": None, "waited for": False, "in the background": True}


def write_data(folder: Path, images: int) -> Path:
    """A folder of random moments and labels, as `erw.data.arrays` reads them."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    np.save(folder / "latents.npy", generator.normal(size=(images, 8, 32, 32)).astype(np.float16))
    np.save(folder / "labels.npy", generator.integers(0, 1000, images))
    (folder / "manifest.json").write_text(json.dumps({"num_classes": 1000, "teachers": []}), encoding="utf-8")
    return folder


def settings(model: str, data: Path, out: Path, steps: int, batch: int, every: int, background: bool | None) -> TrainConfig:
    """A run that saves every ``every`` steps, never where ``background`` is None."""
    config = preset(f"in256-sit-{model}")
    train = replace(config.train, images=steps * batch, batch=batch, out=str(out), log_every=batch, keep=1, tensorboard=False,
                    save_every=0 if background is None else every * batch, async_save=bool(background))  # fmt: skip
    return replace(
        config,
        train=train,
        data=replace(config.data, path=str(data), workers=0),
        engine=replace(config.engine, ds_config="zero1"),
    )


def run(config: TrainConfig) -> dict[str, float]:
    """Seconds of the run's steps and of its saves but for the last, of which the run says nothing apart."""
    from erw.run import Run
    from train_ds import train

    blocked: list[float] = []
    save, at = Run.save, {}

    def timed(self, engine, wait=False):
        before = self.accounts.other.get("saving", 0.0)
        save(self, engine, wait)
        blocked.append(self.accounts.other["saving"] - before)
        at["seconds"] = self.accounts.total("seconds")

    Run.save = timed
    try:
        train(config)
    finally:
        Run.save = save
    return {"train": at["seconds"], "blocked": sum(blocked[:-1]), "saves": len(blocked) - 1, "last": blocked[-1]}


def measure(model: str, steps: int, batch: int, every: int, rounds: int, work: Path) -> dict[str, Any]:
    """The record: a row a mode, medians over ``rounds``."""
    data = write_data(work / "data", max(64, batch))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in MODES}
    size = 0
    for turn in range(rounds):
        for place, (name, background) in enumerate(MODES.items()):
            out = work / f"{turn}-{place}"
            found[name].append(run(settings(model, data, out, steps, batch, every, background)))
            size = sum(file.stat().st_size for file in out.glob("checkpoints/*/*.safetensors"))
    rows = {}
    for name, runs in found.items():
        row = {key: statistics.median(entry[key] for entry in runs) for key in ("train", "blocked", "saves")}
        rows[name] = {"step_seconds": row["train"] / steps, "runs": runs}
        if row["saves"]:
            base = statistics.median(entry["train"] for entry in found["none"])
            rows[name] |= {
                "blocked_seconds": row["blocked"] / row["saves"],
                "longer_seconds": (row["train"] + row["blocked"] - base) / row["saves"],
            }
    return {
        "model": model, "steps": steps, "batch": batch, "every": every, "rounds": rounds, "checkpoint_bytes": size,
        "rows": rows, **fingerprint(torch.device("cpu")),
    }  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| checkpoints | the loop stands still, seconds each | the run takes longer, seconds each | seconds a step |"]
    lines.append("|---|---|---|---|")
    for name, row in record["rows"].items():
        cells = [f"{row[key]:.2f}" if key in row else "" for key in ("blocked_seconds", "longer_seconds")]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {row['step_seconds']:.2f} |")
    facts = [
        f"SiT-{record['model'][:-1].upper()}/2, batch {record['batch']}, one rank",
        f"{record['checkpoint_bytes'] / 1e6:,.0f} MB a checkpoint, one every {record['every']} steps",
        f"medians of {record['rounds']} rounds of {record['steps']} steps",
        f"{record['cpu']}, {record['threads']} threads, torch {record['torch']}",
    ]
    lines.append(f"\n{'; '.join(facts)}.")
    return "\n".join(lines)


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="s2", help="s2, b2, l2 or xl2")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--every", type=int, default=4, help="steps between checkpoints")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", type=Path, default=None, help="a folder on the disk that checkpoints go to")
    parser.add_argument("--out", type=Path, required=True, help="the record; measured unless it exists")
    parser.add_argument("--write", type=Path, help="a page whose section 'checkpoint cost' is written anew")
    options = parser.parse_args(arguments)
    if not options.out.exists():
        with tempfile.TemporaryDirectory(dir=options.work) as work:
            record = measure(options.model, options.steps, options.batch, options.every, options.rounds, Path(work))
        with whole(options.out) as file:
            file.write(json_bytes(record))
    record = json.loads(options.out.read_text(encoding="utf-8"))
    print(table(record))
    if options.write:
        text = options.write.read_text(encoding="utf-8")
        options.write.write_text(with_section(text, "checkpoint cost", table(record), str(options.write)), encoding="utf-8")


if __name__ == "__main__":
    main()
