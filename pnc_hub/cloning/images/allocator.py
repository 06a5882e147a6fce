"""Memory that is used again: what learning frees is not given back to the system before it ends.

Passes with gradients free hundreds of megabytes at a time. glibc returns them at once, and the next pass gets every page anew
from the kernel, zeroed: up to two thirds of the time of a MobileNetV2. Other allocators are left alone.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TRIM, MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
KEPT = 1 << 30  # bytes at the top of the heap, and of one allocation, that stay in the process
# What glibc itself comes to where large blocks are freed (mallopt(3): both thresholds are dynamic, and end here). They cannot
# be read, and once they are set they stay where they are put.
USUAL = {MMAP: 32 << 20, TRIM: 64 << 20}
SET_BY_USERS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@contextmanager
def memory_kept() -> Iterator[None]:
    """While it lasts, freed memory stays in the process; afterwards the allocator is as large tensors leave it, and trimmed."""
    library = _glibc()
    if library is None:
        yield
        return
    for threshold in USUAL:
        library.mallopt(threshold, KEPT)
    try:
        yield
    finally:
        for threshold, usual in USUAL.items():
            library.mallopt(threshold, usual)
        library.malloc_trim(0)


def _glibc() -> Any:
    """The C library, where it is glibc and its user has not set thresholds, which could not be put back."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in SET_BY_USERS):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
