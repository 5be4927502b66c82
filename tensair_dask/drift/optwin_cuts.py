"""Where OPTWIN cuts its window, for every size of it: computed once, then kept.

A row tells, for a window of so many values, how many of them are the history, and what
the two tests of the published detector compare with. Rows are computed in chunks, when
a window first grows to their size, and kept in memory and in a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import uuid
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from tensair_dask import config

__all__ = ["SMALLEST", "Cuts", "cuts_for", "forget"]

# Each part of a smaller window is too short for a variance that means anything.
SMALLEST = 10
# Rows computed at once: few enough that no update is held up for long.
CHUNK = 1024
# Told in every file; another number, another way of computing.
_FORMAT = "tensair-dask cuts of OPTWIN 1"

_tables: dict[tuple[float, float], Cuts] = {}
_lock = threading.Lock()


class Cuts:
    """Rows for windows of 0, 1, 2, ... values; those below `SMALLEST` are empty.

    Parameters
    ----------
    confidence
        That both tests of one window together should have, in (0, 1).
    rho
        Smallest shift of the mean that must be found, in standard deviations of the
        history.

    Attributes
    ----------
    cut
        Values in the history (the older part).
    phi
        Largest ratio of the variances, newest part to history, that passes.
    t
        Largest t that passes.
    df
        Degrees of freedom that it was taken at.

    Notes
    -----
    With p = confidence^(1/4), the newest part gets as few values m of the n as suffice
    to see a shift of ``rho``: the smallest root m of

        t(p, df) sqrt(1 / (n - m) + phi / m) = rho,  phi = F(p, n - m - 1, m - 1).

    Where there is none (the window is still too small), it is cut in the middle. The
    degrees of freedom are those of the published tables: Welch's formula with 1 / phi²
    in place of phi, which changes t by about one percent. They decide here only where
    to cut; `OPTWIN` takes those of its test from the values, unless it is told to
    follow the publication.

    Rows cost 20 µs each, once on a machine: 0.5 s for 25,000, 20 to 40 ms for each
    chunk of 1024 that a window grows into. They take 28 bytes of memory a row, shared
    by all detectors of a process, and 32 bytes of disk.

    References
    ----------
    Tosi and Theobald, "OPTWIN: Drift identification with optimal sub-windows",
    ICDE Workshops, 2024; arXiv:2305.11942.
    """

    def __init__(self, confidence: float, rho: float) -> None:
        self.confidence = confidence
        self.rho = rho
        self.cut = array("i")
        self.phi = array("d")
        self.t = array("d")
        self.df = array("d")
        self._growing = threading.Lock()

    def __len__(self) -> int:
        return len(self.cut)

    def grow(self, size: int) -> None:
        """Have rows up to and with ``size``."""
        while len(self) <= size:
            with self._growing:
                if len(self) <= size:
                    self._add_chunk(len(self))

    def _add_chunk(self, first: int) -> None:
        path = self._path(first)
        rows = _read(path, self._header(first)) if path else None
        if rows is None:
            rows = compute(np.arange(first, first + CHUNK), self.confidence, self.rho)
            if path:
                _write(path, self._header(first), rows)
        self.phi.extend(rows[1].tolist())
        self.t.extend(rows[2].tolist())
        self.df.extend(rows[3].tolist())
        # Other threads take its length for that of all: it is the last to grow.
        self.cut.extend(rows[0].astype(int).tolist())

    def _header(self, first: int) -> bytes:
        return (
            f"{_FORMAT}; confidence {self.confidence!r}, rho {self.rho!r}, "
            f"sizes {first} to {first + CHUNK - 1}\n"
        ).encode()

    def _path(self, first: int) -> Path | None:
        folder = cache_folder()
        if folder is None:
            return None
        name = hashlib.sha256(self._header(first)).hexdigest()[:16]
        return folder / f"optwin-{first:06d}-{name}.cuts"


def cuts_for(confidence: float, rho: float) -> Cuts:
    """Return the rows of this process for a confidence and a shift."""
    with _lock:
        return _tables.setdefault((confidence, rho), Cuts(confidence, rho))


def forget() -> None:
    """Forget the rows in memory; detectors that exist keep theirs."""
    with _lock:
        _tables.clear()


def cache_folder() -> Path | None:
    """Folder of the files: ``tensair.drift.cache``; None where that is null."""
    folder: Any = config.get("drift.cache")
    if folder is None or folder is False:
        return None
    if folder != "auto":
        return Path(folder).expanduser()
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The standard says to pass over a relative one.
    base = Path(home) if os.path.isabs(home) else Path("~/.cache").expanduser()
    return base / "tensair-dask"


def compute(sizes: np.ndarray, confidence: float, rho: float) -> np.ndarray:
    """Compute rows.

    Parameters
    ----------
    sizes
        Shape (rows,), integers: values in the window.
    confidence, rho
        As in `Cuts`.

    Returns
    -------
    rows
        Shape (4, rows), float64: cut, phi, t and degrees of freedom; 0 and NaN for
        sizes below `SMALLEST`.
    """
    from scipy import special

    rows = np.full((4, len(sizes)), np.nan)
    rows[0] = 0
    some = sizes >= SMALLEST
    n = sizes[some].astype(np.float64)
    p = confidence**0.25

    def bounds(n: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, ...]:
        older = n - m
        phi = special.fdtri(older - 1, m - 1, p)
        a, b = 1 / older, 1 / (phi * phi * m)
        df = (a + b) ** 2 / (a * a / (older - 1) + b * b / (m - 1))
        return phi, special.stdtrit(df, p), df

    def excess(n: np.ndarray, m: np.ndarray) -> np.ndarray:
        phi, t, _ = bounds(n, m)
        return t * np.sqrt(1 / (n - m) + phi / m) - rho

    # phi >= 1 and t above the normal quantile: no smaller newest part can do, nor a
    # smaller history.
    least = max(3.0, (special.ndtri(p) / rho) ** 2)
    m, found = _smallest_root(excess, n, least)
    cut = np.where(found, np.floor(n - m), np.floor(n / 2 + 1))
    rows[0, some] = cut
    rows[1:, some] = bounds(n, n - cut)
    return rows


def _smallest_root(
    excess: Any, n: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Smallest m >= least where the excess falls to 0, and whether there is one."""
    most = n - least
    low = np.full(len(n), least)
    above = np.full(len(n), np.inf)
    possible = low < most
    above[possible] = excess(n[possible], low[possible])
    high, below = low.copy(), above.copy()
    # Steps of 10 % until the excess is negative.
    searching = possible & (above > 0)
    while searching.any():
        low[searching], above[searching] = high[searching], below[searching]
        high[searching] *= 1.1
        searching &= high < most
        below[searching] = excess(n[searching], high[searching])
        searching &= below > 0
    found = possible & (below <= 0) & (high < most)
    # The steps were too coarse for windows that are only just large enough.
    rows = np.flatnonzero(~found & (n > 2 * least + 1))
    if len(rows):
        bottom, depth = _valley(excess, n[rows], least)
        rows, deep = rows[depth <= 0], depth <= 0
        low[rows], above[rows] = least, excess(n[rows], np.full(len(rows), least))
        high[rows], below[rows] = bottom[deep], depth[deep]
        found[rows] = True
    # Illinois: the secant of the bracket; an end that stays twice counts half.
    a, fa, b, fb = low[found], above[found], high[found], below[found]
    size = n[found]
    for _ in range(60):
        with np.errstate(invalid="ignore", divide="ignore"):
            c = np.where(fb == fa, b, (a * fb - b * fa) / (fb - fa))
        fc = excess(size, c)
        crossed = fc * fb < 0
        a, fa = np.where(crossed, b, a), np.where(crossed, fb, fa / 2)
        b, fb = c, fc
        if not len(fc) or np.abs(fc).max() < 1e-12:
            break
    root = high.copy()
    root[found] = b
    return root, found


def _valley(excess: Any, n: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the excess is smallest between two smallest parts, and how small."""
    left, right = np.full(len(n), least), n - least
    for _ in range(40):
        third = (right - left) / 3
        one, two = left + third, right - third
        lower = excess(n, one) < excess(n, two)
        right = np.where(lower, two, right)
        left = np.where(lower, left, one)
    bottom = (left + right) / 2
    return bottom, excess(n, bottom)


def _read(path: Path, header: bytes) -> np.ndarray | None:
    """Rows of a file; None unless it is whole and holds exactly what is asked for."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    body = data[len(header) + 32 :]
    whole = (
        data.startswith(header)
        and len(body) == 4 * CHUNK * 8
        and data[len(header) : len(header) + 32] == hashlib.sha256(body).digest()
    )
    return np.frombuffer(body, dtype="<f8").reshape(4, CHUNK) if whole else None


def _write(path: Path, header: bytes, rows: np.ndarray) -> None:
    """Write a file whole or not at all; where that fails, it is computed again."""
    body = rows.astype("<f8").tobytes()
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(header + hashlib.sha256(body).digest() + body)
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
