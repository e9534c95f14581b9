"""A finding: one line that says what was looked at, what was found, and the mend."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "bad"]


@dataclass(frozen=True)
class Finding:
    """``warn``: training works, worse than it could; ``bad``: it does not. ``mend``: what to do about it."""

    verdict: Verdict
    name: str
    text: str
    mend: str = ""

    def line(self) -> str:
        """As it is printed."""
        return f"{self.verdict:<4}  {self.name:<13}  {self.text}" + (f": {self.mend}" if self.mend else "")


def found(check: Callable[..., Finding | list[Finding]], *arguments) -> list[Finding]:
    """What ``check`` finds; a check that fails itself is a bad finding, and the others go on."""
    try:
        result = check(*arguments)
    except Exception as error:  # whatever a driver, a compiler or a file system raises
        first = (str(error).strip().splitlines() or ["no message"])[0]
        return [Finding("bad", check.__name__.replace("_", " "), f"{type(error).__name__}: {first[:200]}")]
    return result if isinstance(result, list) else [result]


def lines(findings: Iterable[Finding], rank: int | None = None) -> list[str]:
    """One a finding; those of another rank than the first are tagged."""
    tag = "" if rank is None else f"[rank {rank}] "
    return [tag + finding.line() for finding in findings]


def failed(findings: Iterable[Finding]) -> bool:
    """Whether any is bad."""
    return any(finding.verdict == "bad" for finding in findings)
