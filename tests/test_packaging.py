from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml
from installed import PROJECT, ROOT

import tensair_dask

# PyPI's name: conda-forge's name.
CONDA_NAMES = {
    "confluent-kafka": "python-confluent-kafka",
    "msgpack": "msgpack-python",
    "prometheus-client": "prometheus_client",
    "torch": "pytorch",
}


def parse(requirement: str) -> tuple[str, str]:
    name, bound = re.fullmatch(r"([A-Za-z0-9_-]+)\s*(.*)", requirement).groups()
    return CONDA_NAMES.get(name.lower(), name.lower()), bound


def requirements() -> dict[str, str]:
    project = PROJECT["project"]
    extras = [
        each for group in project["optional-dependencies"].values() for each in group
    ]
    return dict(map(parse, project["dependencies"] + extras))


def conda() -> dict[str, str]:
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(each["pip"] for each in entries if isinstance(each, dict))
    named = [each for each in entries if isinstance(each, str)]
    named += [each for each in pip if not each.startswith("-")]
    return dict(map(parse, named))


def test_environment_yml_lists_the_same_dependencies_as_pyproject():
    listed = conda()
    assert listed.pop("python") == PROJECT["project"]["requires-python"]
    listed.pop("pip")
    assert listed == requirements()


def test_environment_yml_is_what_its_command_prints():
    command = (sys.executable, "tools/environment.py")
    printed = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert printed.stdout == (ROOT / "environment.yml").read_text()


def test_environment_yml_gives_pip_only_what_a_file_of_requirements_may_hold():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (each["pip"] for each in entries if isinstance(each, dict))
    options = [each for each in pip if each.startswith("-")]
    assert options == ["--editable ."]


def test_the_packages_are_those_on_disk():
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "tensair_dask").rglob("__init__.py")
    }
    found.add("tensair_dask.pipelines")
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_the_version_agrees_with_pyproject():
    assert tensair_dask.__version__ == PROJECT["project"]["version"]


def test_torch_is_pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in lines


def test_the_lowest_versions_that_are_tested_are_those_that_are_allowed():
    allowed = dict(map(parse, PROJECT["project"]["dependencies"]))
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    tested = dict(parse(line) for line in lines if not line.startswith("#"))
    assert tested.keys() == allowed.keys()
    for name, version in tested.items():
        bound = allowed[name].removeprefix(">=")
        assert re.fullmatch(rf"=={re.escape(bound)}(\.0)*", version), name


def test_the_public_names_can_be_imported():
    for name in tensair_dask.__all__:
        assert getattr(tensair_dask, name) is not None
    assert set(tensair_dask.__all__) <= set(dir(tensair_dask))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tensair_dask.nothing
