"""The table of `erw.bench.kernel_code`: a row for each kernel and width, what is worst over its configurations."""

from collections import defaultdict
from collections.abc import Iterable


def section_name(version: str) -> str:
    """Of the Markdown section for a version of triton: one for each major and minor number."""
    return f"kernel code triton {'.'.join(version.split('.')[:2])}"


def caption(found: Iterable, triton_version: str, torch_version: str) -> str:
    """What was compiled by what."""
    codes = [f.code for f in found]
    count = len({id(code) for code in codes})
    return f"triton {triton_version}, torch {torch_version.split('+')[0]}: {count} compilations."


def markdown(found: Iterable, narrow: dict[str, str]) -> str:
    """Registers a thread / shared memory a block in bytes / occupancy, each the worst of a row's configurations.

    Operations that share a kernel share its row; widths of the same code, in the dtypes that come first, share one too. Below
    stands which of the kernels found have a reason in ``narrow``.
    """
    found = list(found)
    chips = sorted({f.code.target for f in found})
    head = ["operations", "kernel", "widths", "configurations", *(f"sm_{chip}" for chip in chips), "faults"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    usual = {id(f.code) for f in found if f.dtypes == found[0].dtypes}
    by_kernel: dict[str, dict[int, dict]] = defaultdict(lambda: defaultdict(dict))
    for f in found:
        by_kernel[f.code.kernel][f.width][id(f.code)] = f.code
    for kernel, by_width in by_kernel.items():
        operations = ", ".join(dict.fromkeys(f.operation for f in found if f.code.kernel == kernel))
        same: dict[frozenset, list[int]] = defaultdict(list)
        for width, codes in by_width.items():
            same[frozenset(one for one in codes if one in usual)].append(width)
        for widths in same.values():
            codes = list({one: code for width in widths for one, code in by_width[width].items()}.values())
            lines.append("| " + " | ".join([operations, kernel.partition(".")[2], *_cells(codes, widths, chips)]) + " |")
    kernels = {f.code.kernel for f in found}
    reasons = [f"- {name}: {why}" for name, why in narrow.items() if name.partition(" ")[0] in kernels]
    return "\n".join([*lines, "", "Not held to 128 bits:", *reasons] if reasons else lines)


def _cells(codes: list, widths: list[int], chips: list[int]) -> list[str]:
    cells = [", ".join(map(str, widths)), str(max(sum(c.target == chip for c in codes) for chip in chips))]
    for chip in chips:
        here = [c for c in codes if c.target == chip]
        worst = (max(c.registers for c in here), max(c.shared for c in here), min(c.occupancy for c in here)) if here else None
        cells.append("{} / {:,} / {:.0%}".format(*worst) if worst else "-")
    faults = sorted({fault for c in codes for fault in c.faults})
    return [*cells, "; ".join(faults) or "none"]
