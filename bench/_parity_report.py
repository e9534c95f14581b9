"""What `erw.bench.parity` prints: errors against limits, and parameter counts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from erw.models.sit import SiT, sized

# Parameters in millions, projector apart (SiT, Table 1; the same in DiT, Table 4).
PUBLISHED_MILLIONS = {"B/2": 130, "L/2": 458, "XL/2": 675}


@dataclass(frozen=True)
class Check:
    """One compared quantity and the largest relative L2 error that it may have."""

    quantity: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """False for a NaN too."""
        return self.error <= self.limit


@dataclass(frozen=True)
class Count:
    """Trainable parameters of the backbone at one published size."""

    model: str
    ours: int
    reference: int
    published_millions: int

    @property
    def passed(self) -> bool:
        """Both sides agree to the last parameter, and with the published figure as rounded there."""
        return self.ours == self.reference and round(self.ours / 1e6) == self.published_millions


def counts(build_reference: Callable[[str], nn.Module], learn_sigma: bool = False) -> list[Count]:
    """Parameter counts at each published size; nothing is allocated. ``learn_sigma``: with DiT's and SiT's 2C channels."""
    found = []
    for name, millions in PUBLISHED_MILLIONS.items():
        with torch.device("meta"):
            ours, reference = SiT(sized(name, learn_sigma=learn_sigma)), build_reference(name)
        found.append(Count(name, trainable(ours), trainable(reference), millions))
    return found


def trainable(model: nn.Module) -> int:
    """Parameters with gradients, the projector apart."""
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if p.requires_grad and not name.startswith("projectors."))


def group_of(quantity: str) -> str:
    """The table's row: for a gradient its module, whichever block it is in, else the quantity up to the first comma."""
    quantity = quantity.partition(",")[0]
    kind, _, name = quantity.partition(" ")
    if kind != "gradient":
        return quantity
    parts = [part for part in name.split(".")[:-1] if not part.isdigit()]
    return "gradients of " + ".".join(parts)


def report(checks: list[Check], counted: list[Count], title: str) -> bool:
    """Print the table: outputs, the worst gradient of each kind, and everything that failed. True where all passed."""
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(group_of(check.quantity), []).append(check)
    print(title)
    print(f"{'quantity':<44} {'tensors':>7} {'relative L2 error':>18} {'limit':>8}")
    for group, members in groups.items():
        # NaN compares false with everything: look for it first, so that it is never hidden behind a smaller error.
        worst = max(members, key=lambda check: (check.error != check.error, check.error))
        print(f"{group:<44} {len(members):>7} {worst.error:>18.2e} {worst.limit:>8.0e}  {_mark(worst.passed)}")
    print(f"\n{'parameters':<44} {'ours':>12} {'reference':>12} {'published':>10}")
    for count in counted:
        millions = f"{count.published_millions}M"
        print(f"{count.model:<44} {count.ours:>12,} {count.reference:>12,} {millions:>10}  {_mark(count.passed)}")
    failed = [check for check in checks if not check.passed]
    wrong = [count.model for count in counted if not count.passed]
    for check in failed[:10]:
        print(f"parity: FAILED: {check.quantity} differs by {check.error:.2e}, more than {check.limit:.0e}")
    if len(failed) > 10:
        print(f"parity: FAILED: {len(failed) - 10} more quantities exceed their limit")
    for model in wrong:
        print(f"parity: FAILED: parameter counts of {model} differ")
    if not failed and not wrong:
        print(f"parity: passed: {len(checks)} quantities within their limits")
    return not failed and not wrong


def _mark(passed: bool) -> str:
    return "ok" if passed else "FAILED"
