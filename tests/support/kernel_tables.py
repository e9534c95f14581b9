"""What a run of the kernels' tests showed, as two tables at its end: contract and planted faults, with their seconds."""

import re
from collections import defaultdict

_CONTRACT = re.compile(r"test_contract\.py::.*\[(\w+)[\]-]")
_FAULT = re.compile(r"test_mutants\.py::test_a_planted_fault\w*\[(\w+)-")
_TABLES = {"Kernels: contract": (_CONTRACT, "kept"), "Kernels: planted faults": (_FAULT, "noticed")}


def pytest_terminal_summary(terminalreporter):
    """Tables over the tests that ran; nothing where none did."""
    stats = terminalreporter.stats
    for title, (pattern, good) in _TABLES.items():
        seconds, counts = defaultdict(float), defaultdict(lambda: [0, 0])
        for outcome in ("passed", "failed"):
            for report in stats.get(outcome, []):
                found = pattern.search(report.nodeid) if report.when == "call" else None
                if found:
                    seconds[found[1]] += report.duration
                    counts[found[1]][0] += outcome == "passed"
                    counts[found[1]][1] += 1
        if counts:
            terminalreporter.section(title)
            terminalreporter.write_line(f"{'operation':<22}{'tests':>7}{good:>9}{'seconds':>9}")
            for name, (passed, total) in sorted(counts.items()):
                terminalreporter.write_line(f"{name:<22}{total:>7}{passed:>9}{seconds[name]:>9.1f}")
