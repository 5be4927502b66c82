"""README.md and docs/ are whole: links lead somewhere, tables tell what there is."""

from __future__ import annotations

import importlib
import re
import sys

import pytest
import yaml
from pages import BESIDE, DOCS, PAGES, README, ROOT, name_of

import tensair_dask as ta
from tensair_dask.cli import tensair

sys.path.insert(0, str(DOCS / "_ext"))
tables = pytest.importorskip(
    "tables_of_the_package", reason="needs sphinx: pip install '.[docs]'"
)

YAML = (ROOT / "tensair_dask" / "tensair.yaml").read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES + BESIDE, ids=name_of)
def test_a_relative_link_leads_to_a_file(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)|`[^`<]*<(\.\./[^>]+)>`", text)
    for link in filter(None, map("".join, links)):
        generated = link.startswith("api/")  # by Sphinx
        if not link.startswith("http") and not generated:
            assert (page.parent / link).exists(), f"{name_of(page)}: {link}"


def leaves(settings, prefix=()):
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, (*prefix, key))
        else:
            yield ".".join((*prefix, key)), value


def test_the_table_of_settings_has_each_with_its_default():
    read = {each.key: yaml.safe_load(each.default) for each in tables.settings(YAML)}
    assert read == dict(leaves(yaml.safe_load(YAML)))


def test_a_comment_goes_on_in_the_next_lines():
    text = "a:\n  b: 1  # first\n     # and second\n  c: 2  # third\n"
    read = {each.key: each.text for each in tables.settings(text)}
    assert read == {"a.b": "first and second", "a.c": "third"}


ROOMS = [
    "adaptation", "drift", "metrics", "prequential", "pubsub", "sources", "streams",
]  # fmt: skip
# Constants, and what other code of the package needs of these modules.
NOT_FOR_USERS = {
    "Call", "MODES", "Modes", "POLICIES", "PREDICTING", "TRAINING", "as_policy",
    "LAST_LABEL", "MAJORITY", "MEAN", "MODEL", "Answer", "Question", "last_label",
    "majority_so_far", "share_so_far", "Policy", "Mark", "Reference", "Tracker",
}  # fmt: skip


REFERENCE = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
LISTED = set(re.findall(r"^   (\w+)$", REFERENCE, re.MULTILINE))


@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_has_the_public_names_of(room):
    public = importlib.import_module(f"tensair_dask.{room}").__all__
    assert set(public) - NOT_FOR_USERS <= LISTED


def test_the_reference_has_the_classes_of_the_package():
    assert {name for name in ta.__all__ if name[0].isupper()} <= LISTED


def test_the_reference_has_every_pipeline():
    text = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    listed = re.findall(r":prog: tensair run (\S+)", text)
    run = tensair.commands["run"]
    assert sorted(listed) == run.list_commands(None)
