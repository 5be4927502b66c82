"""The dashboard for Grafana asks for series that are there, and for all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tensair_dask.observe.dashboard.routes import TARGETS
from tensair_dask.observe.telemetry.events import KINDS
from tensair_dask.observe.telemetry.prometheus import FAMILIES

FOLDER = Path(__file__).parents[3] / "examples" / "grafana"
DASHBOARD = json.loads((FOLDER / "tensair.json").read_text(encoding="utf-8"))
PREFIX = "dask_tensair_"
PANELS = [each for each in DASHBOARD["panels"] if each["type"] != "row"]
VARIABLES = {each["name"]: each for each in DASHBOARD["templating"]["list"]}

# Of the query language, as far as the dashboard uses it.
WORDS = {
    *("sum", "max", "min", "by", "on", "and", "time", "group_right"),
    *("rate", "increase", "delta"),
}


def expressions() -> list[str]:
    found = [target["expr"] for panel in PANELS for target in panel["targets"]]
    return found + [each["expr"] for each in DASHBOARD["annotations"]["list"]]


def families(expression: str) -> set[str]:
    return set(re.findall(rf"\b{PREFIX}(\w+)", expression))


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_names_only_what_is_exported(expression):
    used = families(expression)
    assert used
    assert used <= FAMILIES.keys()
    for name, labels in re.findall(rf"{PREFIX}(\w+)\{{(.*?)\}}", expression):
        matched = set(re.findall(r"(\w+)=~?\"", labels))
        assert {"trainer", "run"} <= matched <= set(FAMILIES[name].labels)
    bare = re.sub(r"\{.*?\}|\[.*?\]|\".*?\"", "", expression)
    words = set(re.findall(r"[a-z_]\w*", bare))
    named = {PREFIX + name for name in used} | {"trainer", "run"}
    assert words <= named | WORDS
    for opened, closed in ("()", "{}", "[]"):
        assert expression.count(opened) == expression.count(closed)


@pytest.mark.parametrize("expression", expressions())
def test_counters_are_differentiated_and_gauges_are_not(expression):
    for function, name in re.findall(rf"(?:(\w+)\()?{PREFIX}(\w+)", expression):
        if name.endswith("_total"):
            assert function in ("rate", "increase"), name
        else:
            assert function not in ("rate", "increase"), name


def test_every_series_has_its_panel():
    shown = set().union(*map(families, expressions()))
    assert shown == FAMILIES.keys()


def test_legends_name_labels_that_are_there():
    for panel in PANELS:
        for target in panel["targets"]:
            (first, *_) = families(target["expr"])
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= set(FAMILIES[first].labels)


def test_events_are_marked_by_kinds_that_there_are():
    for each in DASHBOARD["annotations"]["list"]:
        (kinds,) = re.findall(r"kind=~?\"(.*?)\"", each["expr"])
        assert set(kinds.split("|")) <= KINDS.keys()


def test_trainers_runs_and_the_source_of_data_can_be_chosen():
    assert list(VARIABLES) == ["datasource", "trainer", "run"]
    assert VARIABLES["datasource"]["type"] == "datasource"
    assert VARIABLES["datasource"]["query"] == "prometheus"
    for label in ("trainer", "run"):
        query = VARIABLES[label]["query"]["query"]
        (name,) = families(query)
        assert label in FAMILIES[name].labels
        assert re.fullmatch(rf"label_values\(.*, {label}\)", query)
    asked = [VARIABLES["trainer"], VARIABLES["run"], *PANELS]
    asked += [target for panel in PANELS for target in panel["targets"]]
    asked += DASHBOARD["annotations"]["list"]
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert all(each["datasource"] == source for each in asked)


def test_grafana_10_takes_it():
    assert DASHBOARD["schemaVersion"] >= 38
    assert DASHBOARD["id"] is None
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert {panel["type"] for panel in PANELS} == {"stat", "timeseries"}
    for panel in PANELS:
        assert panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


def test_panels_do_not_overlap():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + right, place["y"] + down)
            for right in range(place["w"])
            for down in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_configuration_of_prometheus_asks_for_what_there_is():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    jobs = {
        each["job_name"]: each for each in yaml.safe_load(snippet)["scrape_configs"]
    }
    assert set(jobs) == {"dask-scheduler", "dask-workers"}
    assert jobs["dask-workers"]["http_sd_configs"][0]["url"].endswith(TARGETS)
    for name in re.findall(rf"{PREFIX}(\w+)\[", text):
        assert name in FAMILIES
