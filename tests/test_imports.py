"""Imports point down, and what the scheduler loads stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tensair_dask"

# From the bottom up; a module may import from its own line and from those above it.
LEVELS = [
    ["wording", "dense", "values", "loops", "places", "downstream"],
    ["stream_methods"],
    [
        "__init__",
        "arguments",
        "errors",
        "config",
        "palette",
        "waiting",
        "background",
        "held",
    ],
    ["calling", "contents", "functions"],
    ["bad_input", "habits", "mended", "holding", "overload", "routes"],
    [
        "columns",
        "named",
        "elsewhere",
        "metrics",
        "memory",
        "notices",
        "one_by_one",
        "pace",
        "placement",
        "plain_state",
        "pubsub",
        "faults",
    ],
    ["drift", "prequential"],
    ["files", "templates", "images"],
    ["outputs", "batches", "exchange", "predictions", "telemetry", "transfer", "text"],
    ["checkpoints"],
    ["dashboard"],
    [
        "before_step",
        "clipping",
        "hidden_state",
        "combinations",
        "optimization",
        "advice",
        "refusals",
        "randomness",
        "scalers",
        "schedule",
        "rollback",
        "fresh",
        "scoring",
        "model_state",
        "structure",
        "broadcasts",
        "counted",
        "criterion",
        "answers",
        "attributes",
        "unsuitable",
        "learner",
        "refused",
        "reports",
        "dead_letters",
        "column_names",
        "ledger",
        "tally",
        "course",
    ],
    ["adaptation", "sources"],
    ["dispatch", "training_thread", "guard", "replica"],
    ["charts", "overview"],
    ["notebook", "live_view"],
    [
        "starting",
        "hearing",
        "cluster",
        "calls",
        "interventions",
        "adapting",
        "usable_workers",
        "newcomers",
        "catching_up",
        "inheritance",
        "recovery",
        "membership",
        "saving",
        "scaling",
        "trainer",
    ],
    ["forms", "try_map", "streams"],
    ["joining", "plots", "drift_plots", "terminal", "interrupts", "programs"],
    ["continuation", "happenings"],
    ["run_page", "running", "scored", "adaptive", "monitor"],
    ["cli", "__main__"],
    ["pipelines"],
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}

# Who may import what, at module level or within functions.
ONLY_IN = {
    "bokeh": {"plots", "drift_plots", "charts", "dashboard"},
    "streamz": {
        "mended",
        "holding",
        "routes",
        "try_map",
        "streams",
        "sources",
        "continuation",
        "pipelines",
    },
    "confluent_kafka": {"sources"},
    "rich": {"terminal", "cli", "running", "monitor", "live_view", "pipelines"},
    "click": {"cli", "programs", "running", "scored", "adaptive", "pipelines"},
    "matplotlib": {"plots"},
    "IPython": {"live_view"},
    "jinja2": {"dashboard", "templates"},
    "river": {"drift", "prequential", "pipelines"},
    "scipy": {"drift"},
}


def modules() -> Iterator[tuple[str, str, ast.Module]]:
    for folder, prefix in ((PACKAGE, ""), (ROOT / "pipelines", "pipelines.")):
        for path in folder.rglob("*.py"):
            name = prefix + ".".join(path.relative_to(folder).with_suffix("").parts)
            yield name, name.partition(".")[0], ast.parse(path.read_text())


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("name", "room", "tree"), list(modules()))
def test_imports_point_down(name, room, tree):
    assert room in LEVEL, f"{room} has no place in the table of levels"
    for target in imported(tree):
        if not target.startswith("tensair_dask."):
            continue
        other = target.split(".")[1]
        if other in LEVEL:
            assert LEVEL[other] <= LEVEL[room], f"{name} imports {target} from above"


@pytest.mark.parametrize(("name", "room", "tree"), list(modules()))
def test_heavy_libraries_are_imported_where_they_belong(name, room, tree):
    for target in imported(tree):
        top = target.partition(".")[0]
        if top in ONLY_IN:
            assert room in ONLY_IN[top], f"{name} imports {top}"


@pytest.mark.parametrize(
    "module",
    [
        "tensair_dask",
        "tensair_dask.pubsub",
        "tensair_dask.pubsub.scheduler",
        "tensair_dask.dashboard.preload",
        "tensair_dask.guard.scheduler",
        "tensair_dask.monitor.program",
        "tensair_dask.prequential",
        "tensair_dask.starting",
    ],
)
def test_what_schedulers_and_monitors_load_does_not_load_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout == "False\n"
