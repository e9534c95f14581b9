"""``erw doctor``."""

import os
import sys
from pathlib import Path

import torch

from erw.commands.parser import Parser
from erw.doctor import compute, machine, ranks, storage
from erw.doctor.checks import failed, found, lines


def _parser() -> Parser:
    parser = Parser(
        "doctor",
        description="Look at this machine before training: versions, GPU, storage of the run's folder, caches, attention\n"
        "backends, kernels; under torchrun also whether the ranks meet and how fast they talk. A line each: ok, warn or bad,\n"
        "with the mend. Exit code 1 where anything is bad. Takes less than a minute.",
        epilog="examples:\n  erw doctor --out runs\n  torchrun --nproc-per-node 8 -m erw.cli doctor",
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder that runs are written to (default runs)")
    return parser


def run(arguments: list[str]) -> None:
    """``erw doctor``."""
    options = _parser().parse_args(arguments)
    own = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available() and own < torch.cuda.device_count()
    device = torch.device("cuda", own) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    findings = []
    for check in (machine.versions, machine.accelerator, machine.processor, machine.limits, machine.compiler,
                  machine.secrets, storage.caches):  # fmt: skip
        findings += found(check)
    if own == 0:  # one a machine: processes side by side would measure each other
        findings += found(storage.run_folder, options.out)
    findings += found(compute.attention, device) + found(compute.kernels, device) + found(ranks.meet, device)
    every = ranks.gather(findings)
    first = int(os.environ.get("RANK", "0")) == 0
    if first or len(every) == 1:
        print("\n".join(lines(every[0])), flush=True)
        for rank, theirs in enumerate(every[1:], start=1):
            for line in lines((f for f in theirs if f.verdict != "ok"), rank):
                print(line, flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if any(failed(theirs) for theirs in every):
        sys.exit(1)
