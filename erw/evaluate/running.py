"""Evaluation beside training: samples from the EMA, judged, in a line of evals.jsonl. Its time is kept apart."""

import json

from erw.build import build_sampler_model, public_buffers
from erw.config import TrainConfig
from erw.engine.engine import Engine
from erw.engine.ranks import Ranks
from erw.evaluate import EVALUATORS
from erw.run import Run
from erw.sample import balanced_labels, generate

# Evaluation draws its own samples; training's seed must not choose them, or two seeds would be judged on two draws.
EVAL_SEED = 1 << 40


class RunningEvaluation:
    """Asks the judge that the settings name. Every rank takes part in gathering the EMA; the first one samples."""

    def __init__(self, config: TrainConfig, ranks: Ranks):
        self.config, self.ranks, self._judge = config, ranks, None

    def evaluate(self, run: Run, engine: Engine) -> None:
        """Judge the EMA at the run's image and append the result; nothing if no evaluator is named."""
        if self.config.eval.name == "none":
            return
        with run.accounts.apart("evaluation"):
            weights = engine.read("ema", keep=self.ranks.first) | public_buffers(engine.step_module)
            if self.ranks.first:
                result = self._judged(weights)
                row = {"images": run.images, "flops": run.accounts.total("flops"),
                       "seconds": run.accounts.total("seconds"), **result}  # fmt: skip
                with (run.folder / "evals.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                shown = ", ".join(f"{k} {v:.4g}" for k, v in result.items())
                run.telemetry.say(f"evaluation at image {run.images:,}: {shown}")
            self.ranks.barrier()

    def _judged(self, weights: dict) -> dict[str, float]:
        if self._judge is None:
            self._judge = EVALUATORS[self.config.eval.name](self.ranks.device)
        model = build_sampler_model(self.config.model, weights, self.ranks.device)
        labels = balanced_labels(self.config.eval.count, self.config.model.num_classes)
        images = generate(model, self.config.objective, self.config.sample, labels, seed=EVAL_SEED)
        return self._judge.evaluate(images.to(self.ranks.device), labels.to(self.ranks.device))
