"""Benchmark records: one JSON file a run, named so that it says what it holds, never overwritten by another run."""

import json
import re
from pathlib import Path

from erw.errors import UserError
from erw.files import json_bytes, whole

RESULTS = Path(__file__).resolve().parent / "results"


def slug(text: str) -> str:
    """Lower-case letters, digits and single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class Record:
    """``<date>_<device>_<what>_<commit>.json`` in ``folder``, rewritten whole by each `write` of this run.

    A run that is killed leaves what it had written last. A name that is taken gets a number behind it.
    """

    def __init__(self, folder: Path, what: str, environment: dict):
        date, commit = environment["date"][:10], environment["commit"] or "nocommit"
        stem = f"{date}_{slug(environment['device'])}_{slug(what)}_{commit}"
        self.path = _reserve(folder, stem)

    def write(self, content: dict) -> None:
        """Replace the file's content, whole or not at all."""
        with whole(self.path) as file:
            file.write(json_bytes(content))


def records_in(folder: Path, pattern: str, what: str, command: str) -> list[tuple[Path, dict]]:
    """(file, content) of the records of kind ``what`` among the files like ``pattern``, by date.

    Raises `UserError` for a file that is not JSON; ``command`` is what would write it again.
    """
    found = []
    for path in folder.glob(pattern):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{path} is not JSON: remove it, or write it again with {command}") from None
        if content.get("what") == what:
            found.append((path, content))
    return sorted(found, key=lambda entry: entry[1]["environment"]["date"])


def _reserve(folder: Path, stem: str) -> Path:
    """Create the first free name. Raises `UserError` where the folder cannot be written."""
    for number in range(1, 1000):
        path = folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.open("x").close()
            return path
        except FileExistsError:
            if not folder.is_dir():
                raise UserError(f"--out {folder} is a file: name a folder") from None
        except OSError as error:
            raise UserError(f"--out {folder} cannot be written: {error.strerror}") from error
    raise UserError(f"--out {folder} holds 999 records called {stem}: move some away")
