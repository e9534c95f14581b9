"""Sections of Markdown files that programs write: what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``."""

import re

from erw.errors import UserError


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {re.escape(name)} -->\n)(.*?)(<!-- /{re.escape(name)} -->)", re.DOTALL)


def section(text: str, name: str, file: str) -> str:
    """What stands in the section. Raises `UserError` where its markers are missing; ``file`` is what that calls the text."""
    found = _pattern(name).search(text)
    if not found:
        raise UserError(f"{file} has no <!-- {name} --> ... <!-- /{name} --> to write the table into")
    return found[2]


def with_section(text: str, name: str, body: str, file: str) -> str:
    """``text`` with ``body`` in the section. Raises `UserError` where its markers are missing."""
    section(text, name, file)
    return _pattern(name).sub(lambda found: f"{found[1]}{body}\n{found[3]}", text)
