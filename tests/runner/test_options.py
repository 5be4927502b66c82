from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tensair_dask.runner.options import (
    PATH,
    POSITIVE,
    Every,
    Number,
    Rate,
    option,
    options_of,
)
from tensair_dask.runner.run import Run, command


@dataclass
class Picnic(Run):
    records: str = "sandwiches"
    guests: int = option(2, "Who eats {records}.", type=POSITIVE)
    size: float | None = option(
        None, "In cm.", "--length", type=float, shown="as it fits"
    )
    ants: bool = option(False, "Invite them.")
    shade: bool = option(True, "Sit below a tree.", "--shade/--sun")
    baskets: tuple[Path, ...] = option((), "To carry.", type=PATH)
    eaten: int = field(default=0, init=False)


@dataclass
class InTheRain(Picnic):
    guests: int = 1
    ants: bool = field(default=True, init=False)
    tent: str | None = option(None, "Where it is.")


def chosen(kind: type[Run], *arguments: str) -> Run:
    runs: list[Run] = []

    @command(kind)
    async def main(run: Run) -> None:
        runs.append(run)

    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return runs[0]


def shown(kind: type[Run]) -> str:
    made = click.Command("main", params=[*options_of(kind)])
    text = CliRunner().invoke(made, ["--help"], terminal_width=200).output
    return " ".join(text.split())


def test_options_fill_the_fields_that_describe_them():
    run = chosen(Picnic, "--guests", "3", "--length", "7", "--ants", "--sun")
    assert (run.guests, run.size, run.ants, run.shade) == (3, 7.0, True, False)


def test_what_is_not_given_has_the_default_of_its_field():
    run = chosen(Picnic)
    assert (run.guests, run.size, run.ants, run.shade) == (2, None, False, True)
    assert (run.baskets, run.rate, run.checkpoint_every) == ((), None, "10s")


def test_an_option_whose_default_is_a_tuple_may_be_repeated():
    run = chosen(Picnic, "--baskets", "a", "--baskets", "b")
    assert run.baskets == (Path("a"), Path("b"))


def test_help_shows_texts_defaults_and_bounds():
    text = shown(Picnic)
    assert "--guests INTEGER RANGE Who eats sandwiches. [default: 2; x>=1]" in text
    assert "--length FLOAT In cm. [default: (as it fits)]" in text
    assert "--ants Invite them. --shade / --sun" in text
    assert "--eaten" not in text


def test_the_options_of_the_most_derived_class_come_first():
    names = [each.name for each in options_of(InTheRain)]
    assert names[:5] == ["tent", "guests", "size", "shade", "baskets"]
    assert names[5] == "scheduler"


def test_a_class_below_may_change_a_default_and_take_an_option_away():
    assert "Who eats sandwiches. [default: 1; x>=1]" in shown(InTheRain)
    assert "--ants" not in shown(InTheRain)
    assert chosen(InTheRain).ants


@pytest.mark.parametrize("text", ["nan", "inf", "0.4"])
def test_a_number_is_finite_and_within_its_bounds(text):
    with pytest.raises(click.BadParameter):
        Number(min=0.5).convert(text, None, None)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [(Rate(), "max", None), (Rate(), "5.5", 5.5), (Every(), "9", 9)],
)
def test_what_a_rate_and_an_interval_may_be(kind, text, value):
    assert kind.convert(text, None, None) == value
