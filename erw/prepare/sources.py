"""Where images come from: a folder by class, a zip or tar of one, parquet or Arrow tables. A new kind is a new file here.

A source is listed once, in an order that depends on names alone, and then read by number, by any process: it can be
pickled, and opens its files where it is used. Nothing is ever unpacked under a name that an archive gives.
"""

from pathlib import Path

from erw.errors import UserError
from erw.prepare.archives import TarSource, ZipSource, is_tar, is_zip
from erw.prepare.folder import FolderSource
from erw.prepare.listing import Source
from erw.prepare.tables import TableSource, tables_in


def open_source(path: Path, split: str | None = None) -> Source:
    """The source in ``path``; ``split``: the sub-folder, or the tables, to take. Raises `UserError` for what is none."""
    if not path.exists():
        raise UserError(f"'{path}' does not exist: name a folder by class, a zip or tar of one, or a parquet data set")
    found = tables_in(path)
    if found:
        return TableSource(path, found, split)
    if path.is_dir():
        return FolderSource(path, split)
    for suits, kind in ((is_zip, ZipSource), (is_tar, TarSource)):
        if suits(path):
            return kind(path, split)
    raise UserError(f"{path} is neither a folder, a zip, a tar (plain, gz, bz2, xz) nor parquet: name one of these")
