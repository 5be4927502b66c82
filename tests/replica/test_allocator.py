from __future__ import annotations

import platform

from tensair_dask.replica.allocator import keep_freed_memory


def test_glibc_takes_the_thresholds_and_others_are_left_alone():
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
