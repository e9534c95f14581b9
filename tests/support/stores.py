"""Small stores of rows that say which they are."""

from pathlib import Path

import torch

from erw.data.store import TeacherEntry, seal, write_shard
from erw.data.store.manifest import Manifest

SIDE, WIDTH, GRID = 4, 96, 2
TEACHER = TeacherEntry(name="t", width=WIDTH, grid=GRID, flops=7, tokens="t", cls="t.cls")


def values(first: int, rows: int) -> dict:
    """Columns of rows ``first`` and on: everything in a row is its number, plus noise of its own in the latents."""
    number = torch.arange(first, first + rows)
    latents = torch.stack([torch.randn(8, SIDE, SIDE, generator=torch.Generator().manual_seed(int(n))) for n in number])
    latents[:, 0, 0, 0] = number.float()
    tokens = number.view(-1, 1, 1).expand(-1, GRID**2, WIDTH).bfloat16().contiguous()
    images = (number % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()
    return {"latents": latents.half(), "labels": number % 10, "names": [f"image {n}" for n in number.tolist()],
            "t": tokens, "t.cls": tokens[:, 0].contiguous(), "images": images}  # fmt: skip


def write_store(folder: Path, rows: int = 200, shard: int = 20, columns: tuple[str, ...] = (), **about) -> Manifest:
    """A store of ``rows`` rows, ``shard`` a shard; of ``columns`` only, where given."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, first in enumerate(range(0, rows, shard)):
        chosen = values(first, min(shard, rows - first))
        chosen = {name: chosen[name] for name in columns or chosen}
        shards.append(write_shard(folder, number, chosen, {"t.cls": "t"}))
    teachers = [TEACHER] if "t" in chosen else []
    return seal(folder, shards, num_classes=10, teachers=teachers, facts={"vae": "none"} | about)


def flip(file: Path, offset: int, bit: int = 0) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[offset] ^= 1 << bit
    file.write_bytes(content)
