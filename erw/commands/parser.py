"""The parser that every subcommand has."""

import argparse

from erw.errors import UserError
from erw.settings import formatter


class Parser(argparse.ArgumentParser):
    """argparse that reports a mistake in one line: ``Parser("sample", description=..., epilog=...)``."""

    def __init__(self, command: str, **options):
        super().__init__(prog=f"erw {command}", formatter_class=formatter, **options)

    def error(self, message: str) -> None:
        """Raise `UserError`."""
        raise UserError(f"{message} ({self.prog} --help)")
