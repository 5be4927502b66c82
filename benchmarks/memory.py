"""Have glibc keep the memory that is freed, instead of returning it to the kernel."""

from __future__ import annotations

import ctypes

__all__ = ["keep_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def keep_memory() -> None:
    """Set the thresholds for trimming the heap and for using `mmap` to 1 GiB.

    A model's temporaries are freed and allocated again in every step. Those that went
    back to the kernel in between come again as fresh pages, one fault for each 4 KiB.
    """
    libc = ctypes.CDLL(None)
    for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        if not libc.mallopt(parameter, 1 << 30):
            raise OSError("glibc's mallopt refused 1 GiB.")
