"""The command line: ``tensair``, ``python -m tensair_dask`` and ``dask tensair``.

Every ``dask`` command imports this module, so it imports click and nothing heavy.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any

import click

import tensair_dask

__all__ = ["main", "tensair"]

PIPELINES = "tensair_dask.pipelines"


class Pipelines(click.Group):
    """The pipelines of the package, by file name; each is imported when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the pipelines."""
        return sorted(_pipelines())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Command of one pipeline: the ``main`` of its module."""
        if (path := _pipelines().get(cmd_name)) is None:
            return None
        found = importlib.import_module(f"{PIPELINES}.{path.stem}").main
        assert isinstance(found, click.Command)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        """Import and run a pipeline; Ctrl-C has the exit code that shells expect."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(130)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the pipeline that was named, or say which there are."""
        name = args[0]
        if not name.startswith("-") and name not in _pipelines():
            ctx.fail(
                f"There is no pipeline {name!r}; there is: "
                f"{', '.join(sorted(_pipelines()))}."
            )
        return super().resolve_command(ctx, args)

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """List names and first lines, read without importing the pipelines."""
        with formatter.section("Pipelines"):
            formatter.write_dl(
                [(name, _first_line(path)) for name, path in _pipelines().items()]
            )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tensair_dask.__version__, package_name="tensair-dask")
def tensair() -> None:
    """Train PyTorch models in real time from data streams on a Dask cluster."""


@tensair.group(cls=Pipelines, invoke_without_command=True)
@click.pass_context
def run(ctx: click.Context) -> None:
    """Run a pipeline; without a name, list them."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@tensair.command()
@click.argument("scheduler", required=False)
@click.option(
    "--scheduler-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Where 'dask scheduler --scheduler-file' has written its address.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object a line, for pipes."
)
@click.option(
    "-n", "--count", type=click.IntRange(min=1), help="Stop after so many times."
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks and logs.")
def monitor(
    scheduler: str | None,
    scheduler_file: Path | None,
    as_json: bool,
    count: int | None,
    interval: float,
    debug: bool,
) -> None:
    """Show how training stands on the cluster of SCHEDULER, live, until Ctrl-C.

    SCHEDULER is an address such as tcp://127.0.0.1:8786, which is the default unless
    Dask's configuration has a scheduler-address.
    """
    if scheduler is not None and scheduler_file is not None:
        raise click.UsageError("Give SCHEDULER or --scheduler-file, not both.")
    from tensair_dask.observe.terminal.program import run

    sys.exit(
        run(
            scheduler,
            scheduler_file,
            as_json=as_json,
            count=count,
            interval=interval,
            debug=debug,
        )
    )


def main() -> None:
    """Run the command line."""
    tensair(prog_name="tensair")


def _pipelines() -> dict[str, Path]:
    """Name and file of each pipeline, sorted by name; ``my_own.py`` is my-own."""
    found = {}
    for folder in importlib.import_module(PIPELINES).__path__:
        for module in pkgutil.iter_modules([folder]):
            if not module.name.startswith("_"):
                name = module.name.replace("_", "-")
                found[name] = Path(folder, f"{module.name}.py")
    return dict(sorted(found.items()))


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]
