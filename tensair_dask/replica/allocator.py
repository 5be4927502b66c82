"""Give torch back the memory allocator that Dask's nanny takes away."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_freed_memory"]

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_KEPT = 1 << 30  # bytes of free memory that a process may hold on to
_MAPPED = 1 << 25  # glibc allows no more


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory instead of returning it to the kernel.

    Dask's nanny starts workers with ``MALLOC_TRIM_THRESHOLD_=65536``, so that every
    large temporary of torch is returned to the kernel and faulted in again: a quarter
    of the speed of a network of a million parameters. Holds for the whole process.

    Returns
    -------
    done
        False where the C library is not glibc; nothing is changed there.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        and libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED)
    )
