"""What a page costs: models, messages, and nothing that grows while it is open."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from bokeh.document import Document

from tensair_dask.observe.dashboard.charts import CHARTS
from tensair_dask.observe.dashboard.pages import pages
from tensair_dask.observe.telemetry.events import Event
from tensair_dask.observe.telemetry.scheduler import Telemetry

# Dask's own /status has 278; what opening costs grows with them.
MOST_MODELS = 450


def telemetry_of(replicas: int, metrics: int = 2) -> Telemetry:
    workers = {
        f"tcp://127.0.0.1:{number}": SimpleNamespace(metrics={})
        for number in range(replicas)
    }
    telemetry = Telemetry(SimpleNamespace(workers=workers))
    names = [f"metric {number}" for number in range(metrics)]
    telemetry.open("run", "trainer", "client", names, replicas)
    grow(telemetry, 1)
    return telemetry


def grow(telemetry: Telemetry, at: float) -> None:
    """One more heartbeat of each worker, and a row."""
    [record] = telemetry.trainers.values()
    for number, worker in enumerate(telemetry.scheduler.workers.values()):
        counts = {
            "at": at,
            "began": 0.0,
            "loss_rest": 0.0,
            "steps": 10 * at,
            "samples": 640 * at,
            "busy": 0.5 * at,
            "loss": 100.0 * at,
            "metrics": {name: [300.0 * at, 0.0, 640 * at] for name in record.metrics},
            **dict.fromkeys(("refused", "predictions", "sent", "received"), 0),
            **dict.fromkeys(("sent_bytes", "received_bytes"), 1000 * at),
            **dict.fromkeys(("staleness_mean", "staleness_p95", "staleness_max"), 3),
            "age_p95": 0.05,
        }
        worker.metrics = {"tensair": {"run": {f"replica-{number}": counts}}}
    telemetry.sample()


def opened(telemetry: Telemetry, path: str = "/training") -> Any:
    document = Document()
    pages(telemetry, 500)[path](
        telemetry.scheduler, {"pages": [], "plots": []}, document
    )
    return document


def update(document: Any) -> None:
    """What the periodic callback of an open page does."""
    [callback] = document.session_callbacks
    callback.callback()


def find(document: Any, name: str) -> Any:
    return document.select_one({"name": name})


def marks(document: Any) -> list[str]:
    first, *_ = document.select({"name": "marks"})
    return first.data_source.data["text"]


@pytest.mark.parametrize("replicas", [2, 200])
def test_the_number_of_models_depends_on_nothing_and_never_changes(replicas):
    telemetry = telemetry_of(replicas)
    document = opened(telemetry)
    models = len(document.models)
    assert models < MOST_MODELS
    for at in range(2, 10):
        grow(telemetry, at)
        telemetry.trainers["run"].events.append(Event("drift", f"number {at}"))
        update(document)
    assert len(document.models) == models
    assert len(opened(telemetry_of(3, metrics=0)).models) == models


def test_an_update_sends_the_new_rows_only():
    telemetry = telemetry_of(2)
    document = opened(telemetry)
    changes: list[Any] = []
    document.on_change(changes.append)
    grow(telemetry, 2)
    update(document)
    streamed = [each for each in changes if each.kind == "ColumnsStreamed"]
    assert len(streamed) == 1
    assert {len(column) for column in streamed[0].data.values()} == {1}
    changes.clear()
    update(document)
    assert changes == []


def test_a_page_that_is_open_for_long_keeps_a_bounded_number_of_rows():
    telemetry = telemetry_of(1)
    document = opened(telemetry)
    length = telemetry.trainers["run"].archive.tiers[0].length
    for at in range(2, length + 50):
        grow(telemetry, at)
        update(document)
    source = find(document, "samples").data_source
    assert len(source.data["time"]) == length


def test_the_first_replicas_have_lines_and_the_legend_says_which():
    document = opened(telemetry_of(12))
    [legend] = find(document, "speed_chart").right
    labels = [item.label["value"] for item in legend.items if item.visible]
    assert labels == ["median", "range", *(f"replica {number}" for number in range(8))]


def test_the_legend_names_the_metrics_that_there_are():
    document = opened(telemetry_of(1, metrics=2))
    chart = find(document, "metrics_chart")
    [legend] = [each for each in chart.above if hasattr(each, "items")]
    labels = [item.label["value"] for item in legend.items if item.visible]
    assert labels == ["metric 0", "metric 1"]


def test_events_before_the_first_row_are_not_drawn():
    telemetry = telemetry_of(1)
    telemetry.trainers["run"].events.append(Event("note", "long ago", time=1.0))
    telemetry.trainers["run"].events.append(Event("note", "now"))
    document = opened(telemetry)
    assert marks(document) == ["now"]
    table = find(document, "event_table").source
    assert table.data["text"] == ["now", "long ago"]


@pytest.mark.parametrize("chart", CHARTS)
def test_every_chart_has_a_title_with_its_unit_and_a_page(chart):
    document = opened(telemetry_of(2), f"/individual-training-{chart}")
    [figure] = [model for model in document.models if type(model).__name__ == "figure"]
    assert figure.title.text
    assert len(document.models) < 150


def test_a_name_is_shown_as_it_is():
    telemetry = telemetry_of(1)
    telemetry.open("other", "<script>alert(1)</script>", "client", [], 1)
    document = opened(telemetry)
    assert "&lt;script&gt;" in find(document, "headline").text
    assert "<script>" not in find(document, "headline").text
