"""tools/benchmark_table.py makes the table of training that docs/benchmarks shows."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "index.md"
tool = runpy.run_path(str(ROOT / "tools" / "benchmark_table.py"))


def measured(*rates: tuple[float, float]) -> dict[str, Any]:
    """Rounds of the plain loop and of two replicas, as training.py writes them."""
    throughput = [
        {
            "plain": {"rate": plain},
            "replicas-2": {
                "rate": ours,
                "client_scheduler_cpu_us": 1_234.0,
                "exchange": [{"age_p95_ms": 40.0}, {"age_p95_ms": 68.4}],
            },
        }
        for plain, ours in rates
    ]
    accuracy = [
        {
            "plain": {"accuracy": 0.9, "scores": [0.0] * 3_000},
            "replicas-2": {"accuracy": 0.89},
        }
    ]
    return {"rounds": {"cnn": {"throughput": throughput, "accuracy": accuracy}}}


def test_the_table_has_what_was_measured_and_leaves_out_the_rest():
    lines = tool["table"](measured((10, 15), (11, 22), (12, 18))).splitlines()
    assert lines == [
        "|  | CNN, 122,570 |",
        "| --- | --- |",
        "| plain PyTorch loop, 1 process | 11.0 (10.0 to 12.0) |",
        "| **tensair_dask, 2 replicas, every gradient exchanged** "
        "| 18.0 (15.0 to 22.0) |",
        "| 2 replicas ÷ plain loop | 1.50 |",
        "| age of a gradient when applied by the peer, p95 | 68 ms |",
        "| client + scheduler, CPU a mini-batch | 1.2 ms |",
        "| accuracy while learning, minus the plain loop's | -0.0100 of 3,000 |",
    ]


def test_the_table_goes_between_the_markers_of_the_page(tmp_path):
    page, file = tmp_path / "index.md", tmp_path / "training.json"
    page.write_text(PAGE.read_text("utf-8"), "utf-8")
    file.write_text(json.dumps(measured((1_000, 1_500))), "utf-8")
    for _ in range(2):
        tool["main"](str(file), str(page))
    before, _, rest = PAGE.read_text("utf-8").partition(tool["BEGIN"])
    made = tool["table"](measured((1_000, 1_500)))
    _, end, after = rest.partition(tool["END"])
    assert page.read_text("utf-8") == f"{before}{tool['BEGIN']}\n{made}\n{end}{after}"


def test_a_page_without_markers_is_refused(tmp_path):
    page, file = tmp_path / "index.md", tmp_path / "training.json"
    page.write_text("# Benchmarks\n", "utf-8")
    file.write_text(json.dumps(measured((1, 1))), "utf-8")
    with pytest.raises(SystemExit, match="lacks the markers"):
        tool["main"](str(file), str(page))
    assert page.read_text("utf-8") == "# Benchmarks\n"


def test_the_documented_rows_are_those_that_the_tool_makes():
    _, _, rest = PAGE.read_text("utf-8").partition(tool["BEGIN"])
    rows = rest.partition(tool["END"])[0].strip().splitlines()[2:]
    known = {*tool["RATES"].values(), *tool["RATIOS"].values()}
    names = [row.split("|")[1].strip() for row in rows]
    assert known <= set(names)
    assert len(names) == len(known) + 3
