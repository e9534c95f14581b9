"""What a block keeps for its backward: ``python -m erw.bench.saved`` counts bytes by op set and recompute policy.

From a forward on tensors that hold nothing (no GPU, no memory), as the difference between models of three blocks and of two, so
embeddings and the final layer drop out. Parameters are not counted, casts of them are. Attention is torch's flash kernel
everywhere: the one that a GPU would run.
"""

import argparse
import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from erw.bench._section import with_section
from erw.bench.reference import ReferenceSiT
from erw.environment import fingerprint
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


class Live(TorchDispatchMode):
    """Storages that operations within made, as long as anything holds them. ``model``'s own are none of them."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self._own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        self._seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata in self._own:
                    continue
                self._seen[storage._cdata] = weakref.ref(storage)
        return returned

    def bytes(self) -> int:
        """Of those that are still alive."""
        return sum(storage.nbytes() for storage in (ref() for ref in self._seen.values()) if storage is not None)


def _whole(build: Callable[[int], nn.Module], config: SiTConfig, batch: int, autocast: bool) -> int:
    """Bytes that a forward leaves alive: what the backward needs, and the output."""
    with FakeTensorMode(), patch.object(F, "scaled_dot_product_attention", _flash), torch.device("cuda"):
        model = build(config)
        for module in model.modules():  # tables are made on the host whatever the default device is
            module._buffers = {name: None if table is None else table.to("cuda") for name, table in module._buffers.items()}
        x = torch.empty(batch, config.in_channels, config.input_size, config.input_size)
        t, y = torch.empty(batch), torch.empty(batch, dtype=torch.long)
        with Live(model) as live, _casting() if autocast else nullcontext():
            output = model(x, t, y)  # noqa: F841  (alive while counting)
            return live.bytes()


@contextmanager
def _casting() -> Iterator[None]:
    """Autocast to bf16 as on a GPU, which torch switches off where there is none."""
    with (
        patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        patch.object(torch.cuda, "is_bf16_supported", lambda: True),
        torch.autocast("cuda", dtype=torch.bfloat16),
    ):
        yield


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


def markdown(content: dict) -> str:
    """The record as a table."""
    lines = [
        "| step | recompute | residual stream | GiB a block | MiB an image | less than the reference |",
        "|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        less = "-" if row["less_than_reference"] is None else f"{row['less_than_reference']:.2f} x"
        lines.append(
            f"| {row['step']} | {row['recompute']} | {row['residual']} | {row['bytes_per_block'] / 2**30:.3f} |"
            f" {row['mib_per_image_and_block']:.2f} | {less} |"
        )
    versions = content["versions"]
    lines.append(f"\n{content['size']}/2, batch {content['batch']}, torch {versions['torch']}, commit {versions['commit']}.")
    return "\n".join(lines)


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m erw.bench.saved", description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="XL", choices=list(SIZES), help="published size at patch 2 (default XL)")
    parser.add_argument("--batch", type=int, default=256, help="images (default 256)")
    parser.add_argument("--out", type=Path, default=RECORD, help=f"record (default {RECORD})")
    parser.add_argument("--write", type=Path, help="count nothing: write <!-- saved bytes --> of this file from the record")
    options = parser.parse_args(arguments)
    if options.write is not None:
        content = json.loads(options.out.read_text(encoding="utf-8"))
        text = with_section(options.write.read_text(encoding="utf-8"), "saved bytes", markdown(content), str(options.write))
        options.write.write_text(text, encoding="utf-8")
        return
    rows = survey(options.size, options.batch)
    content = {"size": options.size, "batch": options.batch, "rows": rows, "versions": fingerprint(torch.device("cpu"))}
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(markdown(content))


if __name__ == "__main__":
    main()
