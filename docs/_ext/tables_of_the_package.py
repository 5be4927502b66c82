"""Tables that are made from the package, so that they cannot tell something else."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tensair_dask.observe.telemetry.prometheus import FAMILIES


class Setting(NamedTuple):
    """One value of tensair.yaml."""

    key: str
    default: str
    text: str


def settings(yaml: str) -> Iterator[Setting]:
    """Read keys, defaults and comments of a YAML file of nested mappings.

    A comment belongs to the key of its line; lines that hold a comment only go on
    with it.
    """
    above: list[tuple[int, str]] = []
    found: Setting | None = None
    for line in yaml.splitlines():
        body, _, comment = line.partition("#")
        if match := re.match(r"(\s*)([\w-]+):\s*(.*)", body):
            if found is not None:
                yield found
                found = None
            indent, name, default = match.groups()
            above = [each for each in above if each[0] < len(indent)]
            above.append((len(indent), name))
            if default.strip():
                key = ".".join(each for _, each in above)
                found = Setting(key, default.strip(), comment.strip())
        elif found is not None and comment:
            found = found._replace(text=f"{found.text} {comment.strip()}")
    if found is not None:
        yield found


class _Table(SphinxDirective):
    """A table in Markdown, parsed where the directive stands."""

    def rows(self) -> list[tuple[str, ...]]:
        """Give the head of the table, then its rows."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """Make the table."""
        head, *rows = self.rows()
        lines = [head, ("---",) * len(head), *rows]
        text = "\n".join(f"| {' | '.join(each)} |" for each in lines)
        return self.parse_text_to_nodes(text)


class Configuration(_Table):
    """Every setting, its default, and the comment beside it in tensair.yaml."""

    def rows(self) -> list[tuple[str, ...]]:
        """Give the settings in the order of the file."""
        file = importlib.resources.files("tensair_dask") / "tensair.yaml"
        return [
            ("setting", "default", "meaning"),
            *(
                (f"`{each.key}`", f"`{each.default}`", each.text)
                for each in settings(file.read_text("utf-8"))
            ),
        ]


class Prometheus(_Table):
    """Every series for Prometheus: its name, kind, labels and meaning."""

    def rows(self) -> list[tuple[str, ...]]:
        """Give the families of series in the order of the package."""
        return [
            ("series", "kind", "labels", "meaning"),
            *(
                (
                    f"`dask_tensair_{each.name}`",
                    "counter" if each.name.endswith("_total") else "gauge",
                    ", ".join(each.labels),
                    each.text,
                )
                for each in FAMILIES.values()
            ),
        ]


# What sphinx-click prints for defaults that there are not: click's marker, and nothing.
NO_DEFAULT = ("Sentinel.UNSET", ":default: ````")


def without_unset(app: Sphinx, context: Any, lines: list[str]) -> None:
    """Leave out defaults that there are not."""
    lines[:] = [line for line in lines if not any(each in line for each in NO_DEFAULT)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directives."""
    app.setup_extension("sphinx_click")
    app.connect("sphinx-click-process-options", without_unset)
    app.add_directive("tensair-configuration", Configuration)
    app.add_directive("tensair-prometheus", Prometheus)
    return {"parallel_read_safe": True}
