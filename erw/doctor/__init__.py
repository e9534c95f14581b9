"""``erw doctor``: what is amiss with a machine, its ranks and the folder of a run, in under a minute.

checks     what a finding is          storage    the run's folder and caches
machine    versions, CPU and GPU      ranks      whether ranks find each other, and how fast they talk
compute    attention, kernels
"""

from erw.doctor.checks import Finding, Verdict, failed, lines

__all__ = ["Finding", "Verdict", "failed", "lines"]
