"""What a block keeps for its backward: ``python -m erw.bench.saved`` counts bytes by op set and recompute policy.

From a forward on tensors that hold nothing (no GPU, no memory), as the difference between models of three blocks and of two, so
embeddings and the final layer drop out. Parameters are not counted, casts of them are. Attention is torch's flash kernel
everywhere: the one that a GPU would run.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from erw.bench._env import fingerprint
from erw.bench.reference import ReferenceSiT
from erw.errors import exits_cleanly
from erw.models.sit import SIZES, SiT, SiTConfig, sized
from erw.ops import resolve

RECORD = Path("bench/results/saved-bytes.json")
POLICIES = ("none", "selective", "full")


def _flash(q: Tensor, k: Tensor, v: Tensor, *_, **__) -> Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


def saved_bytes(build: Callable[[int], nn.Module], config: SiTConfig, batch: int, autocast: bool) -> int:
    """Bytes that one block keeps, for ``batch`` images on a GPU."""
    return _whole(build, replace(config, depth=3), batch, autocast) - _whole(build, replace(config, depth=2), batch, autocast)


def _whole(build: Callable[[int], nn.Module], config: SiTConfig, batch: int, autocast: bool) -> int:
    """Bytes that a model keeps, each storage once."""
    kept: dict[int, tuple[int, Tensor]] = {}

    with FakeTensorMode(), patch.object(F, "scaled_dot_product_attention", _flash), torch.device("cuda"):
        model = build(config)
        for module in model.modules():  # tables are made on the host whatever the default device is
            module._buffers = {name: None if table is None else table.to("cuda") for name, table in module._buffers.items()}
        own = {p.untyped_storage()._cdata for p in model.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage.nbytes(), tensor
            return tensor

        x = torch.empty(batch, config.in_channels, config.input_size, config.input_size)
        t, y = torch.empty(batch), torch.empty(batch, dtype=torch.long)
        casting = torch.autocast("cuda", dtype=torch.bfloat16) if autocast else nullcontext()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), casting:
            output = model(x, t, y)  # noqa: F841  (alive while counting)
    return sum(size for size, _ in kept.values())


def reference_model(config: SiTConfig) -> nn.Module:
    """The published step's network, fp32 weights under autocast."""
    return ReferenceSiT(config, encoder_depth=1, feature_width=768)


def our_model(ops: str, recompute: str) -> Callable[[SiTConfig], nn.Module]:
    """Ours with bf16 weights."""

    def build(config: SiTConfig) -> nn.Module:
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = SiT(config, resolve(ops))
        finally:
            torch.set_default_dtype(torch.float32)
        model.recompute = recompute
        return model.train()

    return build


def survey(size: str, batch: int) -> list[dict]:
    """A row for the reference and for each of ours: bytes a block and an image, and the reference's over it."""
    config = sized(f"{size}/2")
    found = {("reference", "-", "float32"): saved_bytes(reference_model, config, batch, autocast=True)}
    for ops in ("reference", "fused"):
        for recompute in POLICIES:
            for residual in ("float32", "bfloat16"):
                shape = replace(config, residual_dtype=residual)
                found[f"erw {ops}", recompute, residual] = saved_bytes(our_model(ops, recompute), shape, batch, autocast=False)
    theirs = next(iter(found.values()))
    return [
        {"step": step, "recompute": recompute, "residual": residual, "bytes_per_block": count,
         "mib_per_image_and_block": count / batch / 2**20, "less_than_reference": theirs / count if count else None}
        for (step, recompute, residual), count in found.items()
    ]  # fmt: skip


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m erw.bench.saved", description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="XL", choices=list(SIZES), help="published size at patch 2 (default XL)")
    parser.add_argument("--batch", type=int, default=256, help="images (default 256)")
    parser.add_argument("--out", type=Path, default=RECORD, help=f"record (default {RECORD})")
    options = parser.parse_args(arguments)
    rows = survey(options.size, options.batch)
    content = {"size": options.size, "batch": options.batch, "rows": rows, "versions": fingerprint(torch.device("cpu"))}
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{'step':<16}{'recompute':<11}{'residual':<10}{'GiB a block':>12}{'MiB an image':>14}{'x less':>8}")
    for row in rows:
        less = "-" if row["less_than_reference"] is None else f"{row['less_than_reference']:.2f}"
        print(f"{row['step']:<16}{row['recompute']:<11}{row['residual']:<10}{row['bytes_per_block'] / 2**30:>12.3f}"
              f"{row['mib_per_image_and_block']:>14.2f}{less:>8}")  # fmt: skip


if __name__ == "__main__":
    main()
