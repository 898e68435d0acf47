"""The two figures: bars of p50 and p99, and the cumulative distributions; SVG, the same bytes for the same results."""

import pathlib
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib import axes, figure, ticker

from bench import render, results, series
from bench.contenders import contract, glovebox

_INK, _FAINT, _OWN, _OWN_SECOND, _FLOOR = "#1f2933", "#d5dbe1", "#0b7a75", "#5fb3a8", "#1f2933"
_OTHERS = {
    "process": "#9aa5b1",
    "bubblewrap": "#e6a117",
    "runc": "#c8553d",
    "docker": "#3b6fb6",
    "runsc": "#8b5fbf",
}
_LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
_TITLES = {contract.READY: "create → ready", contract.FIRST_RESULT: "create → first result of 1+1"}
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.hashsalt": "glovebox",
}


def color(key: str) -> str:
    """One colour for one contender, in both figures."""
    own = {glovebox.HTTP_KEY: _OWN, glovebox.SDK_KEY: _OWN_SECOND, render.FLOOR_KEY: _FLOOR}
    return own.get(key) or _OTHERS.get(key, "#7b8794")


def write(data: results.Results, folder: pathlib.Path, suffix: str = "svg") -> list[pathlib.Path]:
    """Write both figures."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(_STYLE):
        for name, draw in (("bars", bars), ("ecdf", distributions)):
            path = folder / f"{name}.{suffix}"
            drawn = draw(data)
            # No date in it: the file changes only when the results do.
            metadata = {"Date": None} if suffix == "svg" else {}
            drawn.savefig(path, facecolor="white", metadata=metadata, dpi=110)
            plt.close(drawn)
            written.append(path)
    return written


def _measured(data: results.Results, metric: str) -> list[tuple[results.Entry, series.Series]]:
    return [(entry, found) for entry, found in render.ordered(data, metric) if found and found.samples_ns]


def bars(data: results.Results) -> figure.Figure:
    """p50 as the bar, p99 as its thin end, for both metrics, on one logarithmic axis."""
    rows = {metric: _measured(data, metric) for metric in contract.METRICS}
    heights = [max(1, len(found)) for found in rows.values()]
    drawn, panels = plt.subplots(
        2, 1, figsize=(9, 1.7 + 0.42 * sum(heights)), sharex=True, height_ratios=heights, layout="constrained"
    )
    for panel, (metric, found) in zip(panels, rows.items(), strict=True):
        _bars(panel, found)
        panel.set_title(_TITLES[metric], loc="left", fontweight="bold", fontsize=11)
        _floor_line(panel, data)
    everything = [ns / 1e6 for found in rows.values() for _, s in found for ns in s.samples_ns] or [1.0]
    panels[0].set_xlim(min(everything) / 1.6, max(everything) * 2.6)
    _time_axis(panels[-1])
    drawn.supxlabel(f"bar: p50, thin line: p99, dashed: p50 of the floor\n{_caption(data)}", fontsize=8.5)
    return drawn


def _bars(panel: axes.Axes, rows: list[tuple[results.Entry, series.Series]]) -> None:
    for i, (entry, found) in enumerate(rows):
        summary = found.summary()
        if summary is None:
            continue
        low, high = summary.p50_ns / 1e6, summary.p99_ns / 1e6
        panel.barh(i, low, height=0.62, color=color(entry.key), left=0, zorder=2)
        panel.plot([low, high], [i, i], color=color(entry.key), linewidth=2, zorder=3, solid_capstyle="butt")
        panel.plot([high], [i], marker="|", color=color(entry.key), markersize=11, markeredgewidth=2, zorder=3)
        failed = f"  ({summary.failures} failed)" if summary.failures else ""
        label = f"{render.milliseconds(summary.p50_ns)} / {render.milliseconds(summary.p99_ns)} ms{failed}"
        panel.annotate(
            label,
            (max(low, high), i),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            bbox=_LABEL,
        )
    panel.set_xscale("log")
    panel.set_yticks(range(len(rows)), [entry.name for entry, _ in rows])
    for tick, (entry, _) in zip(panel.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if entry.key in render.BASELINE.values() else "normal")
    panel.invert_yaxis()
    panel.tick_params(axis="y", length=0)
    _frame(panel)


def _floor_line(panel: axes.Axes, data: results.Results) -> None:
    floor = render.p50(data, render.FLOOR_KEY, contract.READY)
    if floor:
        panel.axvline(floor / 1e6, color=_FLOOR, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)


def distributions(data: results.Results) -> figure.Figure:
    """For each time, the share of runs that were done by then."""
    drawn, panels = plt.subplots(1, 2, figsize=(10.5, 4.6), sharey=True, layout="constrained")
    handles = {}
    for panel, metric in zip(panels, contract.METRICS, strict=True):
        for entry, found in _measured(data, metric):
            points = series.ecdf(found.samples_ns, found.runs)
            times = [points[0][0] / 1e6, *(ns / 1e6 for ns, _ in points)]
            own = entry.key in (glovebox.HTTP_KEY, glovebox.SDK_KEY)
            style = (0, (4, 2)) if entry.key == render.FLOOR_KEY else "solid"
            (line,) = panel.step(
                times,
                [0.0, *(share for _, share in points)],
                where="post",
                color=color(entry.key),
                linewidth=2.4 if own else 1.5,
                linestyle=style,
                zorder=3 if own else 2,
            )
            handles[entry.name] = line
        panel.set_xscale("log")
        panel.set_ylim(0, 1.02)
        panel.set_title(_TITLES[metric], loc="left", fontweight="bold", fontsize=11)
        _time_axis(panel)
        _frame(panel)
        panel.grid(axis="y", color=_FAINT, linewidth=0.6, zorder=0)
    panels[0].set_ylabel("share of runs done")
    panels[0].yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    if handles:
        drawn.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    drawn.supxlabel(_caption(data), fontsize=8.5)
    return drawn


def _time_axis(panel: axes.Axes) -> None:
    panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g} ms"))
    panel.xaxis.set_minor_formatter(ticker.NullFormatter())


def _frame(panel: axes.Axes) -> None:
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.grid(axis="x", color=_FAINT, linewidth=0.6, zorder=0)
    panel.set_axisbelow(True)


def _caption(data: results.Results) -> str:
    host = data.machine
    return (
        f"logarithmic axis · {data.settings['runs']} runs each, interleaved · {host['cpus']} CPUs, "
        f"Linux {host['kernel']} · {data.commit} · {data.date[:10]}"
    )
