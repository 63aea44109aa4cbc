"""Freed memory is kept for the next network call, in processes of the command line and in workers only."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from ppl_diffusion.devices.memory import keep_freed_memory

HELD = """
import os, torch
from ppl_diffusion.devices.memory import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

def held():
    torch.ones(2**10)
    begun = resident()
    block = torch.ones(2**24)
    during = resident() - begun
    del block
    return f"{during:.0f} {resident() - begun:.0f}"

print(held(), keep_freed_memory(), held())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept():
    """A block of 64 MiB, in MiB that the process has of the system while it is there, and after it was freed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run([sys.executable, "-c", HELD], env=clean, capture_output=True, text=True, check=True)
    during, given_back, said, during_too, kept = ran.stdout.split()
    assert said == "True"
    assert int(during) > 50
    assert int(given_back) < 10, "what the C library does by itself"
    assert int(during_too) > 50
    assert int(kept) > 50


def test_limits_of_the_environment_stay(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", str(2**20))
    assert keep_freed_memory() is False
