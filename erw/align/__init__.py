"""Methods, one file each. A new one is a new file and one line in ``METHODS``."""

from erw.align.base import Method
from erw.align.erw import Erw
from erw.align.none import Plain
from erw.align.repa import Repa

METHODS: dict[str, type[Method]] = {"none": Plain, "repa": Repa, "erw": Erw}

__all__ = ["METHODS", "Erw", "Method", "Plain", "Repa"]
