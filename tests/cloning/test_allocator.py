"""What learning frees stays in the process, and goes back when it ends."""

import platform
import resource
import subprocess
import sys

import pytest

from pnc_hub.cloning.images import allocator

PROGRAM = """
import resource, sys, torch
from contextlib import nullcontext
from pnc_hub.cloning.images.allocator import memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        [torch.ones(10 << 20) for _ in range(5)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

faults()
outside = faults()
before = resident()
with memory_kept():
    faults()
    inside = faults()
    held = resident() - before
left = resident() - before
print(outside, inside, held, left)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
def test_pages_are_used_again_while_it_lasts_and_returned_when_it_ends():
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    outside, inside, held, left = map(int, said.stdout.split())
    pages = 10 * 5 * (40 << 20) // resource.getpagesize()
    assert outside > pages / 2
    assert inside < pages / 20
    assert held > 100 << 20
    assert left < 50 << 20


@pytest.mark.parametrize("own", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", None])
def test_another_allocator_and_thresholds_of_the_user_are_left_alone(monkeypatch, own):
    if own:
        monkeypatch.setenv(own, "1")
    else:
        monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)
    with allocator.memory_kept():
        pass
