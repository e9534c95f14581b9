"""What accelerators can do by their data sheets: peaks, memory, links, power. Nothing here is measured."""

import re
from dataclasses import dataclass

GB = 1e9
"""Data sheets count in powers of ten; a card has a few percent more memory than its gigabytes say."""


@dataclass(frozen=True)
class Device:
    """One kind of accelerator.

    name        what ``--gpu`` calls it
    pattern     of the name that its driver gives; boards that run at other clocks do not match
    tflops      dense bf16 peak with fp32 sums, TFLOP/s (no sparsity)
    fp32        TFLOP/s in fp32 (not TF32)
    memory      GB
    bandwidth   of its memory, GB/s
    link        to the others of its machine, GB/s in one direction
    per_node    of them in the usual machine
    watts       board power
    """

    name: str
    pattern: str
    tflops: float
    fp32: float
    memory: float
    bandwidth: float
    link: float
    per_node: int
    watts: float


_SXM = r"(?!.*(PCIe|NVL))"
# name, pattern, tflops, fp32, memory, bandwidth, link, per_node, watts
_SHEETS = (
    ("a100", r"\bA100\b", 312.0, 19.5, 80, 2039, 300, 8, 400),
    ("h100", _SXM + r".*\bH100\b", 989.5, 67.0, 80, 3350, 450, 8, 700),
    ("h800", _SXM + r".*\bH800\b", 989.5, 67.0, 80, 3350, 200, 8, 700),
    ("h200", _SXM + r".*\bH200\b", 989.5, 67.0, 141, 4800, 450, 8, 700),
    ("b200", r"\bB200\b", 2250.0, 75.0, 180, 7700, 900, 8, 1000),
    ("l40s", r"\bL40S\b", 362.0, 91.6, 48, 864, 32, 8, 350),
    ("4090", r"\bRTX 4090\b(?! (D|Laptop))", 165.2, 82.6, 24, 1008, 32, 8, 450),
)
DEVICES = {sheet[0]: Device(*sheet) for sheet in _SHEETS}


def device_called(name: str) -> Device | None:
    """The entry for a device whose driver calls it ``name``, None where there is none."""
    return next((device for device in DEVICES.values() if re.search(device.pattern, name)), None)


def bf16_peak(name: str) -> float | None:
    """Published dense bf16 peak of the device called ``name`` in TFLOP/s, None where it is not in the table."""
    device = device_called(name)
    return None if device is None else device.tflops
