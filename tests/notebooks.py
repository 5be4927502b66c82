"""Execute notebooks in a process of their own: kernels leave files open behind them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

path, folder, errors = sys.argv[1:]
book = nbformat.read(path, as_version=4)
try:
    NotebookClient(
        book, timeout=90, allow_errors=errors == "True",
        resources={"metadata": {"path": folder}},
    ).execute()
finally:
    nbformat.write(book, path)
"""


def execute(book: Any, folder: Path, errors: bool = False) -> Any:
    """Run all cells from top to bottom; the notebook with their outputs.

    Parameters
    ----------
    book
        To execute.
    folder
        Where its kernel runs.
    errors
        Whether cells may raise.
    """
    pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel")
    import nbformat

    path = folder / "executed.ipynb"
    nbformat.write(book, path)
    done = subprocess.run(
        [sys.executable, "-c", _EXECUTE, str(path), str(folder), str(errors)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5_000:]
    return nbformat.read(path, as_version=4)
