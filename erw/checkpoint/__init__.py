"""Checkpoints: full fp32 tensors under public names, written so that a kill at any moment leaves a good one.

    RUN/checkpoints/000000051200/     one folder a checkpoint, named by the images seen
        weights.safetensors           fp32 masters, public SiT/REPA names, projectors and position table too
        ema.safetensors               the same names
        exp_avg.safetensors, exp_avg_sq.safetensors
        meta.json                     version, config, images, phase, steps, accounts, size and SHA-256 of each file

One that ``erw import`` wrote has no exp_avg: it can be sampled from and started from, not resumed.
A checkpoint is written into a folder with another name, synced and renamed: a folder with a number for a name is whole.
Full tensors do not know stage or ranks, so any number of ranks can read them.
One that is damaged later is found by its checksums; ``--resume auto`` renames it ``.corrupt-...`` and takes the one before.
"""

from erw.checkpoint.background import Saver
from erw.checkpoint.layout import FORMAT, KEYS, Meta, fault, found, locate, read_meta, read_tensors, sha256
from erw.checkpoint.resume import agreed, check_resumable, check_same_run, newest_sound
from erw.checkpoint.write import save, sweep

__all__ = [
    "FORMAT",
    "KEYS",
    "Meta",
    "Saver",
    "agreed",
    "check_resumable",
    "check_same_run",
    "fault",
    "found",
    "locate",
    "newest_sound",
    "read_meta",
    "read_tensors",
    "save",
    "sha256",
    "sweep",
]
