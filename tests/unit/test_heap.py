"""Freed memory stays with the process: the next block of the size comes without a page fault."""

import json
import platform
import subprocess
import sys

import pytest

from launch import environment

PROGRAM = """
import json, resource, sys
import torch
from erw.engine.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(16 << 20).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
print(json.dumps([kept, *(faults() for _ in range(20))]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_block_that_was_freed_is_taken_again_without_page_faults():
    def run(how):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    # Which block is taken again settles after a few, as it does in a run's first steps.
    (agreed, *kept), (_, *mapped) = run("keep"), run("default")
    assert agreed and 10 * max(kept[-5:]) < min(mapped)
