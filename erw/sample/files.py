"""The file that a sampling job writes in the end."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from erw.files import kept


def write_npz(path: Path, parts: Iterable[np.ndarray], shape: tuple[int, ...], labels: np.ndarray) -> None:
    """An .npz of ``arr_0`` uint8 of ``shape`` (N, H, W, C), from ``parts`` of its rows in order, and ``labels`` (N,).

    One part is in memory at a time. The same input gives the same bytes. This is what ADM's evaluator reads.
    """
    with kept(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for part in parts:
                member.write(np.ascontiguousarray(part).data)
        with archive.open(zipfile.ZipInfo("labels.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array(member, labels)
