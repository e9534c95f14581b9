"""Evaluation beside training: samples from the EMA, judged, as a line of evals.jsonl and of metrics.jsonl and as curves.

Every rank samples its share, in the blocks of `erw.sample.blocks`, so that a result does not depend on the ranks. Its time
is kept apart.
"""

import json

import torch
from torch import Tensor

from erw.build import build_sampler_model, public_buffers
from erw.config import TrainConfig
from erw.engine.engine import Engine
from erw.engine.ranks import Ranks
from erw.evaluate import EVALUATORS
from erw.evaluate.anchors import anchors_for, remark
from erw.latents import latent_space
from erw.run import Run
from erw.sample import BlockSampler, balanced_labels
from erw.sample.blocks import check_precision

# Evaluation draws its own samples; training's seed must not choose them, or two seeds would be judged on two draws.
EVAL_SEED = 1 << 40


class RunningEvaluation:
    """Asks the evaluator that the settings name. It is made at once: what it lacks is said before hours of training."""

    def __init__(self, config: TrainConfig, ranks: Ranks):
        self.config, self.ranks = config, ranks
        if config.eval.name == "none":
            return
        check_precision(config.eval.precision, ranks.device)
        self._labels = balanced_labels(config.eval.count, config.model.num_classes)
        self._anchors = anchors_for(config)
        self._space = latent_space(config.latents)
        self._space.prepare()
        self._judge = EVALUATORS[config.eval.name](ranks.device, config) if ranks.first else None

    def evaluate(self, run: Run, engine: Engine) -> None:
        """Judge the EMA at the run's image and note the result; nothing if no evaluator is named. A collective."""
        if self.config.eval.name == "none":
            return
        with run.accounts.apart("evaluation"):
            # Each rank has one fp32 model on its device for this while, put together tensor by tensor.
            weights = engine.read("ema", device=self.ranks.device) | public_buffers(engine.step_module)
            images = self._images(build_sampler_model(self.config.model, weights, self.ranks.device))
            if self.ranks.first:
                self._note(run, self._judge.evaluate(images, self._labels))
            self.ranks.barrier()

    def _images(self, model: torch.nn.Module) -> Tensor | None:
        """(count, C, H, W) fp32 on the CPU of the first rank, None elsewhere. Each block is fetched as it is done."""
        config, ranks, images = self.config, self.ranks, None
        sampler = BlockSampler(model, config.objective, config.sample, self._labels, seed=EVAL_SEED,
                               batch=config.eval.batch, precision=config.eval.precision)  # fmt: skip
        blocks = sampler.blocks()
        for start in range(0, len(blocks), ranks.count):
            turn = blocks[start : start + ranks.count]
            mine = sampler.images(turn[ranks.rank], self._space) if ranks.rank < len(turn) else None
            for block, part in zip(turn, ranks.collect(mine, len(turn)), strict=False):
                images = part.new_empty(len(self._labels), *part.shape[1:]) if images is None else images
                images[block.start : block.stop] = part[: len(block)]
        return images

    def _note(self, run: Run, result: dict[str, float]) -> None:
        """Into evals.jsonl, metrics.jsonl, the boards and onto the screen."""
        spent = {"flops": run.accounts.total("flops"), "seconds": run.accounts.total("seconds")}
        with (run.folder / "evals.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"images": run.images, **spent, **result}) + "\n")
        curves = {f"eval/{name}": value for name, value in result.items()}
        run.telemetry.log(run.images, {"evaluation": self.config.eval.name, **curves})
        shown = ", ".join(f"{name} {value:.4g}" for name, value in result.items())
        published = remark(self._anchors, result, run.images, self.config.eval.count)
        run.telemetry.say(f"evaluation at image {run.images:,}: {shown}{published}")
