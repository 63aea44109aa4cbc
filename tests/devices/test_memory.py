"""Freed memory is kept for the next network call, in processes of the command line and in workers only."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from ppl_diffusion.devices.memory import keep_freed_memory

COUNT = """
import resource, torch
from ppl_diffusion.devices.memory import keep_freed_memory

def pages():
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        blocks = [torch.ones(2**20) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun

print(pages(), keep_freed_memory(), pages())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept():
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run([sys.executable, "-c", COUNT], env=clean, capture_output=True, text=True, check=True)
    given_back, said, kept = ran.stdout.split()
    pages_of_a_round = 4 * 2**20 * 4 // os.sysconf("SC_PAGE_SIZE")
    assert said == "True"
    assert int(kept) < 2 * pages_of_a_round < 20 * pages_of_a_round < int(given_back)


def test_limits_of_the_environment_stay(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", str(2**20))
    assert keep_freed_memory() is False
