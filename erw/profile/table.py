"""A breakdown of a step as one page of Markdown."""

from erw.profile.trace import Breakdown

_LONGEST_NAME = 76


def page(found: Breakdown, facts: dict[str, str], trace: str) -> str:
    """One page: what was profiled (``facts``), parts, kinds, longest operations, and how to open the file ``trace``."""
    on_device = any(device is not None for _, device in found.parts.values())
    lines = ["# Where the step's time goes", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += [f"- a step: {found.step:.3f} ms while profiled, which is slower than otherwise", "", "## Parts of a step", ""]
    if on_device:
        lines += ["| part | host ms | device ms | share of the step |", "|---|---|---|---|"]
        lines += [f"| {n} | {h:.3f} | {d:.3f} | {_share(d, found)} |" for n, (h, d) in found.parts.items()]
    else:
        lines += ["| part | ms | share of the step |", "|---|---|---|"]
        lines += [f"| {n} | {h:.3f} | {_share(h, found)} |" for n, (h, _) in found.parts.items()]
    lines += ["", "## Kinds of work", "", "| kind | ms | share of the step |", "|---|---|---|"]
    lines += [f"| {kind} | {time:.3f} | {_share(time, found)} |" for kind, time in found.kinds.items()]
    lines += [f"| idle | {found.idle:.3f} | {_share(found.idle, found)} |"]
    if found.hidden:
        lines += ["", f"Communication hidden behind other work: {found.hidden:.3f} ms a step."]
    lines += ["", "## Longest operations", "", "| operation | kind | ms | calls a step |", "|---|---|---|---|"]
    lines += [f"| `{_short(name)}` | {kind} | {time:.3f} | {calls:g} |" for name, kind, time, calls in found.top]
    lines += ["", f"The trace is {trace}: open it at https://ui.perfetto.dev or in chrome://tracing. The parts are its `erw::`"]
    lines += ["ranges. docs/profiling.md says what the lines mean."]
    return "\n".join(lines) + "\n"


def _share(time: float, found: Breakdown) -> str:
    return f"{time / found.step:.1%}" if found.step else "-"


def _short(name: str) -> str:
    name = name.replace("|", "/").replace("`", "'")
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
