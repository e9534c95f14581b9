"""The installed command ``erw``: help, and dispatch to a file of `erw.commands`."""

import sys
from importlib import import_module

from erw import __version__
from erw.commands import COMMANDS
from erw.errors import UserError, exits_cleanly


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand. Its file is imported only then, so that help waits for nothing."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"erw {__version__}: diffusion transformers with representation alignment\n")
        print("\n".join(f"  erw {name:<11} {text}" for name, text in COMMANDS.items()))
        print("\nerw COMMAND --help says more.")
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(__version__)
        return
    if arguments[0] not in COMMANDS:
        raise UserError(f"'{arguments[0]}' is not a command; known: {', '.join(COMMANDS)}")
    import_module(f"erw.commands.{arguments[0].replace('-', '_')}").run(arguments[1:])


if __name__ == "__main__":
    main()
