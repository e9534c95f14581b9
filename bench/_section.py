"""Tables inside Markdown files, between ``<!-- NAME -->`` and ``<!-- /NAME -->``; the rest of a file is never touched."""

import re
from collections.abc import Callable

from erw.errors import UserError


def with_section(text: str, name: str, build: Callable[[], str], *, file: str) -> str:
    """``text`` of ``file`` with what ``build`` gives in the section ``name``. Raises `UserError` where its markers are
    missing, before anything is built."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"{file} has no <!-- {name} --> ... <!-- /{name} --> to write the table into")
    content = build()
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)
