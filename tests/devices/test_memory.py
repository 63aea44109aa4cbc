"""Freed memory is kept for the next network call, in processes of the command line and in workers only."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from ppl_diffusion.devices.memory import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
for _ in range(50):
    blocks = [torch.ones(2**20) for _ in range(4)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def faults(how: str, **environment: str) -> tuple[str, int]:
    """Return what the function said, and the pages that the system gave to the process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run(
        [sys.executable, "-c", COUNT, how], env=clean | environment, capture_output=True, text=True, check=True
    )
    said, pages = ran.stdout.split()
    return said, int(pages)


@glibc
@pytest.mark.slow
def test_freed_memory_is_kept_and_limits_of_the_environment_stay():
    pages_of_a_round = 4 * 2**20 * 4 // os.sysconf("SC_PAGE_SIZE")
    said, kept = faults("keep")
    _, given_back = faults("leave")
    assert said == "True"
    assert given_back - kept > 20 * pages_of_a_round
    said, limited = faults("keep", MALLOC_MMAP_THRESHOLD_=str(2**20))
    assert said == "False"
    assert limited - kept > 20 * pages_of_a_round
