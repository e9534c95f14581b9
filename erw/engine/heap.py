"""Where a CPU's training step gets its memory: from what the step before it freed."""

import ctypes

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let freed blocks stay with this process, where its C library is glibc. Whether it agreed.

    A step frees and takes hundreds of MB again: DeepSpeed's flat gradients alone are six bytes a weight. By default glibc maps
    each such block anew and unmaps it when it is freed, and the first touch of every page then goes through the kernel, which
    took a third of a step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # no glibc
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _MOST))
