"""Images from a trained model: ``erw sample RUN_OR_CHECKPOINT`` rebuilds it from the checkpoint alone."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from erw import rng
from erw.build import build_sampler_model
from erw.checkpoint import locate, read_meta, read_tensors
from erw.config import TrainConfig, config_from_dict
from erw.errors import UserError
from erw.latents import latent_space
from erw.models.sit import SiT
from erw.objectives import Objective
from erw.rng import Purpose
from erw.samplers import SampleConfig, sample


def generate(model: SiT, objective: Objective, config: SampleConfig, labels: Tensor, *, seed: int, first: int = 0,
             batch: int = 250, progress: bool = False) -> Tensor:  # fmt: skip
    """Latents (N, C, S, S) fp32 on the CPU for labels (N,).

    Image i depends on (seed, first + i) alone, not on the batch (with dopri5: not beyond its tolerance).
    """
    device = next(model.parameters()).device
    shape = (model.config.in_channels, model.config.input_size, model.config.input_size)

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return model(x.float(), t.float().to(device), y).prediction.double()

    parts = []
    for start in tqdm(range(0, len(labels), batch), unit="batch", disable=not progress):
        y = labels[start : start + batch].to(device)
        index = torch.arange(first + start, first + start + len(y), device=device)
        null = model.config.num_classes
        parts.append(sample(network, config, objective, seed=seed, index=index, y=y, shape=shape, null=null).cpu())
    return torch.cat(parts)


def balanced_labels(count: int, num_classes: int) -> Tensor:
    """(count,) labels 0, 1, ..., classes - 1, 0, 1, ...: each class as often as any other, to within one."""
    return torch.arange(count) % num_classes


def random_labels(count: int, num_classes: int, seed: int) -> Tensor:
    """(count,) labels drawn uniformly, a function of (seed, position)."""
    return (rng.uniform(seed, torch.arange(count), Purpose.SAMPLER_LABEL) * num_classes).long().clamp(max=num_classes - 1)


def to_uint8(images: Tensor) -> np.ndarray:
    """(N, C, H, W) in [-1, 1] to (N, H, W, C) uint8."""
    return (images.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def grid(pixels: np.ndarray, columns: int, gap: int = 1, zoom: int = 1) -> Image.Image:
    """One picture from (N, H, W, C) uint8, row by row."""
    count, height, width, channels = pixels.shape
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), np.uint8)
    for i, picture in enumerate(pixels):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    image = Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet)
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def load_run(path: Path, device: torch.device, weights: str = "ema") -> tuple[TrainConfig, SiT, Path]:
    """(settings, model in eval mode, checkpoint) from a run's folder or one checkpoint; ``weights``: ema or weights."""
    checkpoint = locate(path)
    meta = read_meta(checkpoint)
    config = config_from_dict(meta.config)
    if config.method.phase(max(meta.images - 1, 0)).depth is not None:
        raise UserError(f"{checkpoint} lies in the warm-up: it has no output to sample with; take a later checkpoint")
    return config, build_sampler_model(config.model, read_tensors(checkpoint, weights), device), checkpoint


def write_samples(path: Path, out: Path | None, count: int, labels: str, seed: int, weights: str,
                  changes: SampleConfig | None = None) -> Path:  # fmt: skip
    """Sample ``count`` images from the run or checkpoint in ``path`` into ``out``: samples.png and samples.npz.

    ``labels``: balanced, random, or class numbers with commas between. Returns the folder.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, model, checkpoint = load_run(path, device, weights)
    chosen = parse_labels(labels, count, config.model.num_classes, seed)
    latents = generate(model, config.objective, changes or config.sample, chosen, seed=seed, progress=True)
    space = latent_space(config.latents)
    images = torch.cat([space.decode(part.to(device)).cpu() for part in latents.split(32)])
    pixels = to_uint8(images)
    out = out or checkpoint.parent.parent / f"samples-{checkpoint.name}"
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "samples.npz", arr_0=pixels, labels=chosen.numpy())
    columns = min(10, math.ceil(math.sqrt(len(pixels))))
    grid(pixels[: columns * columns], columns, zoom=max(1, 64 // pixels.shape[1])).save(out / "samples.png")
    return out


def parse_labels(text: str, count: int, num_classes: int, seed: int) -> Tensor:
    """(count,) labels from the option's text. Raises `UserError` for anything that is not a class of the model."""
    if text == "balanced":
        return balanced_labels(count, num_classes)
    if text == "random":
        return random_labels(count, num_classes, seed)
    try:
        given = torch.tensor([int(part) for part in text.split(",")])
    except ValueError:
        raise UserError(f"--labels takes balanced, random or class numbers with commas between, not '{text}'") from None
    if given.min() < 0 or given.max() >= num_classes:
        raise UserError(f"--labels '{text}': classes of this model are 0..{num_classes - 1}")
    return given.repeat(-(-count // len(given)))[:count]
