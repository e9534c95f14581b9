"""Every kernel against its contract on this device: ``python -m erw.bench.contract``

For each operation, variant and dtypes: sizes tried, the largest error as a share of what `erw.kernels.contract` allows, what
broke it, seconds. Operations run in processes of their own, since most of the time goes into compiling. On a CPU set
TRITON_INTERPRET=1: the interpreter stands in for the device, and minutes pass.
"""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from erw.bench._options import named, parser_of
from erw.bench._record import Record
from erw.bench._timing import Deadline
from erw.environment import fingerprint
from erw.errors import UserError, exits_cleanly
from erw.kernels import SPECS
from erw.kernels._launch import INTERPRETED
from erw.kernels.contract import checks, sizes, small, variants

_BY_NAME = {spec.name: spec for spec in SPECS}
OUT_OF_TIME = "not tried: out of time"


def tried(name: str, device: str, dry_run: bool, seconds: float) -> Iterator[dict]:
    """A row for each variant and dtypes of operation ``name``. ``dry_run``: one of them, at a small size."""
    spec, deadline = _BY_NAME[name], Deadline(seconds)
    for variant, dtypes in variants(spec, device)[: 1 if dry_run else None]:
        row = {"operation": name, "variant": variant, "dtypes": dtypes}
        if deadline.left() <= 0:
            yield row | {"status": OUT_OF_TIME}
            continue
        start = time.perf_counter()
        cases = (small(spec),) if dry_run else sizes(spec, device)
        try:
            found = [(case, c) for case in cases for c in checks(spec, case, dtypes, spec.options[variant], device)]
        except Exception as error:  # a kernel that does not compile is a finding, and the others' rows count
            first = (str(error).strip().splitlines() or ["no message"])[0]
            yield row | {"status": f"failed: {type(error).__name__}: {first}"}
            continue
        broken = [f"{case}: {check}" for case, check in found if check.broken]
        yield row | {
            "status": "broken" if broken else "kept",
            "cases": len(cases),
            "tensors": len(found),
            "largest_share": max((c.error / c.limit for _, c in found if c.limit), default=0.0) if not broken else None,
            "broken": broken,
            "seconds": time.perf_counter() - start,
        }


def _rows(name: str, device: str, dry_run: bool, seconds: float) -> list[dict]:
    return list(tried(name, device, dry_run, seconds))


def survey(names: list[str], device: str, *, dry_run: bool, deadline: Deadline, jobs: int) -> Iterator[list[dict]]:
    """The rows of each operation, as they come."""
    if jobs == 1:
        yield from (_rows(name, device, dry_run, deadline.left()) for name in names)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(_rows, name, device, dry_run, deadline.left()) for name in names]
        for done in as_completed(running):
            yield done.result()


def lines_of(rows: list[dict]) -> list[str]:
    """One line an operation; further ones for what is not kept."""
    lines = [f"{'operation':<22}{'dtypes x variants':>18}{'tensors':>9}{'largest share of the limit':>28}{'seconds':>9}"]
    for name in dict.fromkeys(row["operation"] for row in rows):
        mine = [row for row in rows if row["operation"] == name]
        done = [row for row in mine if "tensors" in row]
        share = max((row["largest_share"] for row in done if row["largest_share"] is not None), default=0.0)
        tensors, seconds = (sum(row[key] for row in done) for key in ("tensors", "seconds"))
        lines.append(f"{name:<22}{len(mine):>18}{tensors:>9}{share:>28.2f}{seconds:>9.1f}")
        for row in mine:
            if row["status"] != "kept":
                where = f"  {row['variant']} {row['dtypes']}: {row['status']}"
                lines.append(where + "".join(f"\n    {text}" for text in row.get("broken", [])))
    return lines


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line. Exit code 1 where the contract is broken or a kernel fails."""
    parser = parser_of("contract", __doc__, minutes=5)
    parser.add_argument("--operations", default="", help="only these, with commas between")
    parser.add_argument("--jobs", type=int, help="processes (default: 8 on a GPU, else 1)")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not INTERPRETED:
        raise UserError("erw.bench.contract needs a CUDA device, or TRITON_INTERPRET=1 for Triton's interpreter on a CPU")
    names = named("--operations", options.operations, _BY_NAME)
    environment = fingerprint(torch.device(device), options.commit)
    content = {"what": "contract", "dry_run": options.dry_run, "interpreted": INTERPRETED, "environment": environment}
    record = Record(Path(options.out), "dry-run" if options.dry_run else "contract", environment)
    rows, jobs = [], 1 if options.dry_run else options.jobs or (8 if device == "cuda" else 1)
    for found in survey(names, device, dry_run=options.dry_run, deadline=Deadline(options.minutes * 60), jobs=jobs):
        rows += found
        record.write(content | {"rows": rows})
    print("\n".join(lines_of(rows)))
    print(f"record: {record.path}")
    if any(row["status"] not in ("kept", OUT_OF_TIME) for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
