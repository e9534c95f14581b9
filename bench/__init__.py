"""Benchmarks, installed as ``erw.bench``. Records lie in ``bench/results/``."""
