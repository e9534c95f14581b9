"""The command line of training: a preset, then options over it."""

import sys

from erw.config import TrainConfig
from erw.errors import UserError
from erw.presets import PRESETS, preset
from erw.settings import help_text, override

# Short forms of options that are typed every day.
ALIASES = {
    "--ds-config": "--engine.ds_config",
    "--resume": "--train.resume",
    "--out": "--train.out",
    "--seed": "--train.seed",
    "--images": "--train.images",
    "--batch": "--train.batch",
    "--profile": "--train.profile",
    "--profile-at": "--train.profile_at",
}


def usage(config: TrainConfig | None, name: str = "PRESET") -> str:
    """Help: presets, or every option of one preset with its value."""
    lines = [f"usage: train_ds.py {name} [--section.field VALUE ...] [--dry-run]", ""]
    if config is None:
        lines += ["presets:"] + [f"  {n:<26} {(f.__doc__ or '').strip().splitlines()[0]}" for n, f in PRESETS.items()]
        lines += ["", "train_ds.py PRESET --help lists the options with that preset's values."]
    else:
        lines += [
            (PRESETS[name].__doc__ or "").strip(),
            "",
            "options and their values in this preset:",
            help_text(config),
        ]
        lines += ["", "short forms: " + ", ".join(f"{a} ({b})" for a, b in ALIASES.items())]
        lines += ["--dry-run prints the resolved plan and trains nothing."]
    return "\n".join(lines)


def parse(arguments: list[str]) -> tuple[TrainConfig, bool]:
    """(settings, dry run) of a command line. Help is printed and ends the process."""
    # The deepspeed launcher adds its rank; the environment says the same.
    arguments = [a for a in arguments if not a.startswith("--local_rank")]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(None))
        sys.exit(0 if arguments else 2)
    name, *rest = arguments
    if name.startswith("-"):
        raise UserError(f"a preset comes first, before {name}; presets: {', '.join(PRESETS)}")
    config = preset(name)
    if "-h" in rest or "--help" in rest:
        print(usage(config, name))
        sys.exit(0)
    dry_run = "--dry-run" in rest
    rest = [a for a in rest if a != "--dry-run"]
    return override(config, [_long_form(a) for a in rest]), dry_run


def _long_form(argument: str) -> str:
    head, equals, value = argument.partition("=")
    return ALIASES.get(head, head) + equals + value
