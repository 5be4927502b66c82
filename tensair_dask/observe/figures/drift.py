"""Draw how a model trained, predicted and met drifts: as a picture and as a page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tensair_dask.drift.run_record import Detections
from tensair_dask.errors import ConfigurationError
from tensair_dask.observe.figures.scores import picture
from tensair_dask.observe.palette import BLACK, BLUE, EVENTS, GREEN, GREY, ORANGE

__all__ = ["Course", "draw", "html", "panels", "png", "stretches"]

# Names of what is drawn, as the legend has them.
TRAINED, PREDICTED = "training", "predicting only"
BAND = "loss of nine in ten mini-batches"
CHANGE = "the stream truly changed"
ALARM = "drift detected"
ALARM_AFTER = "drift detected, after so many mini-batches"
FALSE_ALARM = "false alarm"
MISSED = "change that was missed"
MARKS = (CHANGE, ALARM, ALARM_AFTER, FALSE_ALARM, MISSED)

COLOURS = {TRAINED: ORANGE, PREDICTED: BLUE}
CHANGE_COLOUR, CHANGE_DASH = BLACK, EVENTS["note"][1]
ALARM_COLOUR = EVENTS["drift"][0]

ALARM_HEIGHT = 0.89  # below the words that name the changes; 1 is the panel's

# Stretches of a curve: more cannot be seen on a screen, and would make pages large.
MOST = 500
# Changes and alarms that are drawn: the first ones. With more than a few, words beside
# them would cover each other.
MARKED, NAMED = 200, 24

HEADING = """
:host { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #222; }
h1 { font-size: 20px; margin: 4px 12px 0; }
p { font-size: 14px; margin: 2px 12px 6px; color: #555; }
"""

LEGEND = """
:host { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #222; }
ul { list-style: none; display: flex; flex-wrap: wrap; gap: 3px 20px; font-size: 13px; }
ul { margin: 2px 12px; padding: 0; }
svg { vertical-align: middle; }
"""

COLUMNS = ["first", "last", "index", "learned", "loss", "low", "high"]


@dataclass(frozen=True)
class Course:
    """What happened along a stream.

    Attributes
    ----------
    rows
        One row a mini-batch, in any order: ``index`` (its number), ``loss``,
        ``learned`` (False where it was predicted and not learned), and a column for
        each of the metrics.
    metrics
        Names of those that are drawn, below the loss.
    changes
        Mini-batches at which the stream truly changed, and what changed; empty where
        nobody knows: no alarm is then called false.
    alarms
        Mini-batches at which a drift was detected.
    references
        Lines to compare a metric with: for its name the label and the values, one for
        each mini-batch from 0.
    """

    rows: pd.DataFrame
    metrics: Sequence[str] = ("accuracy",)
    changes: Mapping[int, str] = field(default_factory=dict)
    alarms: Sequence[int] = ()
    references: Mapping[str, tuple[str, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        needed = {"index", "loss", "learned", *self.metrics}
        if missing := needed - set(self.rows.columns):
            raise ConfigurationError(
                f"rows have no column {', '.join(sorted(missing))}; needed are "
                f"{', '.join(sorted(needed))}, as trainer.history has them."
            )

    def marks(self) -> Iterator[tuple[int, str, str]]:
        """Place, kind and words of each change and each alarm that is drawn.

        A change that was missed is there as that, too.
        """
        detections = Detections(self.changes, self.alarms)
        for text, place, alarm, _ in detections.rows()[:MARKED]:
            yield place, CHANGE, text
            if alarm is None:
                yield place, MISSED, "missed"
        delays = dict(zip(detections.found, detections.delays, strict=True))
        for place in detections.alarms[:MARKED]:
            if not self.changes:
                yield place, ALARM, ""
            elif (delay := delays.get(place)) is not None:
                yield place, ALARM_AFTER, f"after {delay:,}"
            else:
                yield place, FALSE_ALARM, "nothing had changed"

    @property
    def named(self) -> bool:
        """Whether there is room for words beside the marks."""
        return len(self.changes) + len(self.alarms) <= NAMED


def stretches(
    rows: pd.DataFrame, metrics: Iterable[str] = (), most: int = MOST
) -> pd.DataFrame:
    """Sum up mini-batches that follow each other, so that few enough are drawn.

    Parameters
    ----------
    rows, metrics
        As a `Course` has them. Rows without a loss are left out.
    most
        How many stretches there may be.

    Returns
    -------
    frame
        One row a stretch: ``first`` and ``last`` mini-batch, ``index`` (the mean),
        ``learned`` (of most of them), means of ``loss`` and metrics, and ``low`` and
        ``high``, between which nine in ten of the losses lie.
    """
    metrics = list(metrics)
    rows = rows[np.isfinite(rows["loss"].to_numpy(dtype=float))]
    if not len(rows):
        return pd.DataFrame(columns=[*COLUMNS, *metrics], dtype=float)
    index = rows["index"].to_numpy()
    width = -(-int(index.max() - index.min() + 1) // most)
    groups = rows.groupby((index - index.min()) // width)
    loss = groups["loss"]
    made = {
        "first": groups["index"].min(),
        "last": groups["index"].max(),
        "index": groups["index"].mean(),
        "learned": groups["learned"].mean() >= 0.5,
        "loss": loss.mean(),
        "low": loss.quantile(0.05),
        "high": loss.quantile(0.95),
    }
    made |= {name: groups[name].mean() for name in metrics}
    return pd.DataFrame(made).reset_index(drop=True)


def draw(
    course: Course, *, folder: Path, title: str, subtitle: str = "", name: str = "drift"
) -> dict[str, str]:
    """Write the drawing as PNG and as HTML.

    Parameters
    ----------
    course
        What happened.
    folder
        Made if it is not there.
    title, subtitle
        Above the panels.
    name
        File name without its ending.

    Returns
    -------
    files
        The paths, by kind: "png" and "html".

    Raises
    ------
    TensairError
        If matplotlib is not installed; the HTML is then written all the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {kind: folder / f"{name}.{kind}" for kind in ("html", "png")}
    html(course, files["html"], title, subtitle)
    png(course, files["png"], title, subtitle)
    return {kind: str(path) for kind, path in files.items()}


# --------------------------------------------------------------------------- a picture


def png(course: Course, path: Path, title: str, subtitle: str = "") -> None:
    """Draw the loss, and the metrics below it, with matplotlib.

    Raises
    ------
    TensairError
        If matplotlib is not installed.
    """
    seen = stretches(course.rows, course.metrics)
    figure = picture(figsize=(10, 3.9 + 2.1 * len(course.metrics)), dpi=150)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    axes = figure.subplots(
        1 + len(course.metrics),
        1,
        sharex=True,
        squeeze=False,
        height_ratios=[3, *[2] * len(course.metrics)],
    )[:, 0]
    for panel, name in zip(axes, ["loss", *course.metrics], strict=True):
        for low, high in _trained(seen):
            panel.axvspan(low, high, color=ORANGE, alpha=0.09, linewidth=0)
        if name == "loss":
            panel.fill_between(
                seen["index"],
                seen["low"],
                seen["high"],
                color=GREY,
                alpha=0.25,
                linewidth=0,
                label=BAND,
            )
        elif name in course.references:
            words, values = course.references[name]
            panel.plot(values, color=GREEN, linestyle=(0, (5, 2)), label=words)
        for phase, line in _lines(seen, name).items():
            panel.plot(seen["index"], line, color=COLOURS[phase], label=phase, lw=1.8)
        _mark(panel, course, named=name == "loss")
        panel.set_ylabel(f"{name} (mean)")
        panel.grid(axis="y", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.01)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes[0].set_ylim(bottom=0)
    axes[0].set_title(subtitle, fontsize=10, color="#444444", pad=24)
    axes[-1].set_xlabel("mini-batches of the stream")
    labelled: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, handle)
    figure.legend(
        labelled.values(),
        labelled.keys(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    figure.savefig(path)


def _mark(panel: Any, course: Course, named: bool) -> None:
    """Draw lines where the stream changed, and signs where that was noticed."""
    across = panel.get_xaxis_transform()  # the height of the panel is 1
    for place, kind, text in course.marks():
        if kind == CHANGE:
            dash = (0, tuple(length / 1.5 for length in CHANGE_DASH))
            panel.axvline(
                place, color=CHANGE_COLOUR, linestyle=dash, linewidth=1.2, label=CHANGE
            )
        elif kind != MISSED:
            panel.axvline(place, color=ALARM_COLOUR, linewidth=0.9, zorder=1)
        if named and kind != CHANGE:
            panel.plot(
                [place],
                [0.96],
                marker="X" if kind == MISSED else "v",
                markersize=9,
                markeredgecolor=ALARM_COLOUR,
                markerfacecolor="white" if kind == FALSE_ALARM else ALARM_COLOUR,
                linestyle="none",
                transform=across,
                label=kind,
                zorder=3,
            )
        if named and course.named and kind != FALSE_ALARM:
            above = kind == CHANGE
            panel.annotate(
                text,
                (place, 1.0 if above else 0.96),
                xycoords=across,
                xytext=(0, 6) if above else (8, 0),
                textcoords="offset points",
                ha="center" if above else "left",
                va="bottom" if above else "center",
                fontsize=9,
                color=CHANGE_COLOUR if above else ALARM_COLOUR,
            )


# ------------------------------------------------------------------------------ a page


def html(course: Course, path: Path, title: str, subtitle: str = "") -> None:
    """Draw the same with bokeh, with everything the page needs inside the file."""
    from bokeh.embed import file_html
    from bokeh.layouts import column
    from bokeh.models import Div
    from bokeh.resources import INLINE

    text = f"<h1>{escape(title)}</h1><p>{escape(subtitle)}</p>"
    heading = Div(text=text, sizing_mode="stretch_width", stylesheets=[HEADING])
    page = column(heading, panels(course), sizing_mode="stretch_width")
    path.write_text(file_html(page, INLINE, title), encoding="utf-8")


def panels(course: Course) -> Any:
    """Draw the loss, and the metrics below it, with bokeh.

    Parameters
    ----------
    course
        What happened.

    Returns
    -------
    layout
        Of bokeh.
    """
    from bokeh.layouts import column, gridplot
    from bokeh.models import Div

    drawing = _Page(course)
    names = ["loss", *course.metrics]
    drawn = [drawing.panel(name, last=name == names[-1]) for name in names]
    # Bokeh's own legend does not break its line where a window is narrow.
    legend = Div(
        text=_legend(course), sizing_mode="stretch_width", stylesheets=[LEGEND]
    )
    grid = gridplot(
        [[panel] for panel in drawn],
        sizing_mode="stretch_width",
        merge_tools=True,
        toolbar_options={"logo": None},
    )
    return column(legend, grid, sizing_mode="stretch_width")


def _legend(course: Course) -> str:
    """Name everything that is drawn, once, as a list in HTML."""
    kinds = {kind for _, kind, _ in course.marks()}
    line = '<path d="M1 7h28" stroke="{}" stroke-width="2.5" {}/>'
    dashed = 'stroke-dasharray="{} {}"'
    sign = '<path d="M9 2h12l-6 10z" fill="{}" stroke="{}" stroke-width="1.5"/>'
    cross = '<path d="M10 2l10 10m0-10l-10 10" stroke="{}" stroke-width="3"/>'
    signs = {
        TRAINED: line.format(COLOURS[TRAINED], ""),
        PREDICTED: line.format(COLOURS[PREDICTED], ""),
        BAND: f'<path d="M3 1h24v12h-24z" fill="{GREY}" opacity="0.25"/>',
        CHANGE: line.format(CHANGE_COLOUR, dashed.format(*CHANGE_DASH)),
        ALARM: sign.format(ALARM_COLOUR, ALARM_COLOUR),
        ALARM_AFTER: sign.format(ALARM_COLOUR, ALARM_COLOUR),
        FALSE_ALARM: sign.format("white", ALARM_COLOUR),
        MISSED: cross.format(ALARM_COLOUR),
    }
    signs |= {
        words: line.format(GREEN, dashed.format(7, 4))
        for name, (words, _) in course.references.items()
        if name in course.metrics
    }
    shown = {
        words: sign
        for words, sign in signs.items()
        if words not in MARKS or words in kinds
    }
    items = "".join(
        f'<li><svg width="30" height="14" aria-hidden="true">{sign}</svg> '
        f"{escape(words)}</li>"
        for words, sign in shown.items()
    )
    return f'<ul aria-label="legend">{items}</ul>'


class _Page:
    """The panels of a page, as they are added."""

    def __init__(self, course: Course) -> None:
        from bokeh.models import ColumnDataSource

        self._course = course
        self._seen = seen = stretches(course.rows, course.metrics)
        data: dict[str, Any] = {
            "index": seen["index"],
            "which": _which(seen),
            "phase": np.where(seen["learned"].astype(bool), TRAINED, PREDICTED),
            "low": seen["low"],
            "high": seen["high"],
        }
        for name in ("loss", *course.metrics):
            data[name] = seen[name]
            for phase, line in _lines(seen, name).items():
                data[f"{name}, {phase}"] = line
        self._source = ColumnDataSource(data)
        marks = list(course.marks())
        self._marks = {
            kind: ColumnDataSource(
                {
                    "place": [place for place, its, _ in marks if its == kind],
                    "text": [text for _, its, text in marks if its == kind],
                    "kind": [kind for _, its, _ in marks if its == kind],
                }
            )
            for kind in MARKS
        }
        self._panels: list[Any] = []

    def panel(self, name: str, last: bool) -> Any:
        """Draw one panel, below those that are there."""
        from bokeh.models import BoxAnnotation, DataRange1d, NumeralTickFormatter
        from bokeh.plotting import figure

        first = not self._panels
        linked = {"x_range": self._panels[0].x_range} if self._panels else {}
        panel = figure(
            height=360 if first else 220 + 20 * last,
            y_axis_label=f"{name} (mean)",
            tools="pan,xwheel_zoom,box_zoom,reset,save",
            active_scroll=None,
            min_border_left=64,
            min_border_right=24,
            **({"x_range": DataRange1d(range_padding=0.01)} | linked),
        )
        panel.xaxis.formatter = NumeralTickFormatter(format="0,0")
        panel.outline_line_color = None
        panel.xgrid.grid_line_color = None
        panel.ygrid.grid_line_alpha = 0.6
        for low, high in _trained(self._seen):
            ground = BoxAnnotation(left=low, right=high, fill_color=ORANGE)
            ground.fill_alpha, ground.level = 0.09, "underlay"
            panel.add_layout(ground)
        drawn = []
        if first:
            drawn.append(self._band(panel))
        elif name in self._course.references:
            drawn.append(self._reference(panel, name))
        drawn += self._curves(panel, name)
        # The marks have a scale of their own.
        panel.y_range.renderers = drawn
        if first:
            panel.y_range.start = 0
        self._mark(panel)
        if last:
            panel.xaxis.axis_label = "mini-batches of the stream"
        self._panels.append(panel)
        return panel

    def _band(self, panel: Any) -> Any:
        band = panel.varea(
            "index", "low", "high", source=self._source, color=GREY, alpha=0.25
        )
        return band

    def _reference(self, panel: Any, name: str) -> Any:
        _, values = self._course.references[name]
        # The corners of the steps are all that there is to see.
        corners = _corners(values)
        line = panel.line(
            corners, values[corners], color=GREEN, line_dash=[7, 4], line_width=1.8
        )
        return line

    def _curves(self, panel: Any, name: str) -> list[Any]:
        from bokeh.models import HoverTool

        lines = []
        for phase in (TRAINED, PREDICTED):
            line = panel.line(
                "index",
                f"{name}, {phase}",
                source=self._source,
                color=COLOURS[phase],
                line_width=2.2,
            )
            lines.append(line)
        # One that is there everywhere, for the pointer to find.
        found = panel.line("index", name, source=self._source, line_alpha=0)
        values = [(each, f"@{{{each}}}{{0.000}}") for each in self._names]
        panel.add_tools(
            HoverTool(
                renderers=[found],
                mode="vline",
                tooltips=[("mini-batches", "@which"), ("phase", "@phase"), *values],
            )
        )
        return lines

    @property
    def _names(self) -> list[str]:
        return ["loss", *self._course.metrics]

    def _mark(self, panel: Any) -> None:
        from bokeh.models import HoverTool, Range1d

        panel.extra_y_ranges = {"marks": Range1d(0, 1)}
        signs = []
        for kind, source in self._marks.items():
            if not source.data["place"]:
                continue
            change = kind == CHANGE
            colour = CHANGE_COLOUR if change else ALARM_COLOUR
            if kind != MISSED:  # that has the line of its change
                line = panel.segment(
                    x0="place",
                    x1="place",
                    y0=0,
                    y1=1,
                    source=source,
                    color=colour,
                    line_dash=list(CHANGE_DASH) if change else "solid",
                    line_width=1.4 if change else 1,
                    y_range_name="marks",
                )
                signs.append(line)
            if self._panels:
                continue
            if not change:
                sign = panel.scatter(
                    "place",
                    ALARM_HEIGHT,
                    marker="x" if kind == MISSED else "inverted_triangle",
                    size=12,
                    source=source,
                    line_color=colour,
                    line_width=3 if kind == MISSED else 1,
                    fill_color="white" if kind == FALSE_ALARM else colour,
                    y_range_name="marks",
                )
                signs.append(sign)
            if kind != FALSE_ALARM and self._course.named:
                self._name(panel, source, colour, above=change)
        if signs:
            panel.add_tools(
                HoverTool(
                    renderers=signs,
                    tooltips=[("@kind", "@text"), ("mini-batch", "@place{0,0}")],
                    attachment="below",
                )
            )

    def _name(self, panel: Any, source: Any, colour: str, above: bool) -> None:
        """Write words beside the marks."""
        panel.text(
            "place",
            1.0 if above else ALARM_HEIGHT,
            text="text",
            source=source,
            x_offset=5 if above else 10,
            text_baseline="top" if above else "middle",
            text_font_size="12px",
            text_color=colour,
            y_range_name="marks",
        )


# ----------------------------------------------------------------------- what both need


def _lines(seen: pd.DataFrame, name: str) -> dict[str, np.ndarray]:
    """Values of a column in the one phase and in the other, NaN elsewhere.

    Where the phase changes, the point before belongs to both, so that no gap is left.
    """
    values = seen[name].to_numpy(dtype=float)
    learned = seen["learned"].to_numpy(dtype=bool)
    lines = {}
    for phase, inside in ((TRAINED, learned), (PREDICTED, ~learned)):
        begins_next = np.append(inside[1:], False)
        lines[phase] = np.where(inside | begins_next, values, np.nan)
    return lines


def _trained(seen: pd.DataFrame) -> list[tuple[float, float]]:
    """First and last mini-batch of each time in which it trained."""
    learned = seen["learned"].to_numpy(dtype=bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], learned, [0]])))
    first, last = seen["first"].to_numpy(), seen["last"].to_numpy()
    return [
        (float(first[begin]), float(last[end - 1]) + 1)
        for begin, end in zip(edges[::2], edges[1::2], strict=True)
    ]


def _which(seen: pd.DataFrame) -> list[str]:
    return [
        f"{first:,.0f}" if first == last else f"{first:,.0f} to {last:,.0f}"
        for first, last in zip(seen["first"], seen["last"], strict=True)
    ]


def _corners(values: np.ndarray) -> np.ndarray:
    steps = np.flatnonzero(np.diff(values))
    ends = [0, len(values) - 1] if len(values) else []
    return np.unique(np.concatenate([steps, steps + 1, ends]).astype(int))
