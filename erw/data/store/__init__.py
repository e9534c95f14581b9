"""Prepared datasets: shards of rows in Arrow files, which any Arrow reader opens, and a manifest.

    DATASET/manifest.json         columns, shards with their sizes and SHA-256, teachers, facts of the preparation; written last
    DATASET/GROUP-00000.arrow     one record batch: the rows of shard 0, columns of GROUP alone

What is read together is a group, a file of its own a shard: latents with labels, each teacher's features, images. A run
fetches and reads the groups that it needs. Every wide value has a digest beside it, which each read checks.
"""

from erw.data.store.columns import Column, rows_per_shard
from erw.data.store.dataset import StoreDataset
from erw.data.store.manifest import Manifest, TeacherEntry, is_store, read_manifest
from erw.data.store.writer import seal, write_shard

__all__ = [
    "Column",
    "Manifest",
    "StoreDataset",
    "TeacherEntry",
    "is_store",
    "read_manifest",
    "rows_per_shard",
    "seal",
    "write_shard",
]
