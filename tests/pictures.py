"""Sets of small images on disk."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

PARTS = {"train": 20, "t10k": 10}


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, prefix: str = "", suffix: str = "", dot: str = "-") -> None:
    """Write the four files; image i of a part is filled with i."""
    folder.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if suffix == ".gz" else bytes
    for part, count in PARTS.items():
        pixels = np.arange(count)[:, None, None] * np.ones((1, 5, 6))
        for kind, axes, array in (
            ("images", 3, pixels),
            ("labels", 1, np.arange(count) % 4),
        ):
            name = f"{prefix}{part}-{kind}{dot}idx{axes}-ubyte{suffix}"
            (folder / name).write_bytes(pack(idx(array)))


def write_cifar(folder: Path, count: int = 3, label: int = 9) -> np.ndarray:
    """Write the files of the binary version; the same images into each."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32))
    records = [bytes([label]) + each.astype(np.uint8).tobytes() for each in pixels]
    for name in [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]:
        (folder / name).write_bytes(b"".join(records))
    return pixels
