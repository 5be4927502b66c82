"""What a trainer shows of itself in a notebook."""

from __future__ import annotations

import datetime

from tensair_dask.observe import templates
from tensair_dask.observe.figures.event_marks import MARKS
from tensair_dask.observe.snapshot import Overview
from tensair_dask.observe.sparkline import outline
from tensair_dask.observe.wording import number

__all__ = ["draw"]

# Replicas that are listed; of all others, how many there are.
LISTED = 50


def draw(overview: Overview, live: bool = False) -> str:
    """Draw an overview as a piece of HTML, in the manner of Dask's own objects.

    Parameters
    ----------
    overview
        Of the trainer.
    live
        For a view that is drawn again and again: what can be folded otherwise is
        open.
    """
    curves, seconds = overview.curves, overview.curves["seconds"]
    return templates.render(
        "tensair_trainer.html.j2",
        live=live,
        trainer=overview,
        listed=overview.replicas[:LISTED],
        more=len(overview.replicas) - LISTED,
        number=number,
        moment=_clock(overview.time),
        speed=outline(curves["samples_per_second"], seconds, lowest=0.0),
        loss=outline(curves["loss"], seconds),
        events=[
            (_clock(each.time), MARKS[each.kind], each.text)
            for each in reversed(overview.events)
        ],
    )


def _clock(moment: float) -> str:
    """Time of day where the notebook's kernel runs."""
    return datetime.datetime.fromtimestamp(moment).strftime("%H:%M:%S")
