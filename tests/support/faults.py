"""What goes wrong in a job of `erw.bench._lives`: each function is called in every rank before it trains."""

import json
import os
import time

import train_ds
from erw.bench._states import note_restored
from erw.cache import digest
from erw.engine.engine import Engine
from erw.objectives.flow import Flow

STEP_SECONDS = 0.05
SPOILT = range(6, 12)  # steps, counted from 1, whose gradients are not finite


def slowly() -> None:
    """Steps take a while, so that a signal comes in the middle of a short run."""
    draw = Flow.draw

    def slow(self, *args):
        time.sleep(STEP_SECONDS)
        return draw(self, *args)

    Flow.draw = slow


def hanging() -> None:
    """The second rank waits for its eighth batch for ever; its other threads live."""
    slowly()
    stream = train_ds.stream

    def hangs(*args, **kwargs):
        for count, batch in enumerate(stream(*args, **kwargs)):
            if count == 7 and os.environ["RANK"] == "1":
                time.sleep(1e6)
            yield batch

    train_ds.stream = hangs


def not_finite() -> None:
    """Steps `SPOILT` find an infinity in one gradient, on the first rank alone, whatever was done about it before."""
    backward, seen = Engine.backward, []

    def spoils(self, loss):
        seen.append(loss)
        handles = []
        if len(seen) in SPOILT and self.ranks.first:
            weight = next(p for name, p in self.parameters().items() if name.endswith("attn.qkv.weight"))
            handles.append(weight.register_hook(lambda grad: grad.index_fill(0, grad.new_zeros(1).long(), float("inf"))))
        backward(self, loss)
        for handle in handles:
            handle.remove()

    Engine.backward = spoils


def noting_samples() -> None:
    """Every rank notes, by image, a digest of what its steps were given (label drop included), and what was gone on from."""
    note_restored()
    train, draw = train_ds.train, Flow.draw

    def noting(self, phase, seed, latents, labels, index, classes):
        inputs = draw(self, phase, seed, latents, labels, index, classes)
        fields = {"latents": latents, "x": inputs.x, "t": inputs.t, "y": inputs.y, **inputs.target}
        with open(noting.file, "a", encoding="utf-8") as file:
            for row, image in enumerate(index.tolist()):
                given = {name: value[row].clone() for name, value in fields.items()}
                file.write(json.dumps([image, digest(given)]) + "\n")
        return inputs

    def training(config):
        os.makedirs(config.train.out, exist_ok=True)
        noting.file = os.path.join(config.train.out, f"samples-{os.environ['RANK']}.jsonl")
        train(config)

    Flow.draw, train_ds.train = noting, training
