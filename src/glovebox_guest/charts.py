"""A matplotlib figure as data: what kind of chart it is, and the numbers that were plotted.

`of_figure` looks only at the artists that are in the figure; nothing is patched, so it makes no difference which function
drew them (pyplot, pandas, seaborn). One axes gives one chart, several give a `superchart`. The kinds, tried in order:

    pie              wedges
    box_and_whisker  boxes (closed lines or path patches) with whiskers at their middles
    bar              bar containers: bars, histograms
    scatter          path collections, perhaps with lines
    line             lines
    unknown          anything else
"""

import datetime
import importlib
import math
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

Chart = Dict[str, Any]

#: A figure with more points than this is shown without its chart.
MAX_POINTS = 40_000
MAX_LABEL_DISTANCE = 0.5
_UNIT = re.compile(r"\s\((?P<round>[^()]*)\)|\[(?P<square>[^\[\]]*)\]")


class _TooLargeError(Exception):
    pass


def of_figure(figure: Any) -> Optional[Chart]:
    """The chart of a figure; {} when nothing was drawn, None when there is too much for data."""
    all_axes = [axes for axes in figure.get_axes() if axes.get_label() != "<colorbar>"]
    try:
        charts = [_of_axes(axes) for axes in all_axes if _has_content(axes)]
    except _TooLargeError:
        return None
    if not charts:
        return {}
    if len(charts) == 1:
        return charts[0]
    title = getattr(figure, "_suptitle", None)
    return {"type": "superchart", "title": (title.get_text() or None) if title else None, "elements": charts}


def _has_content(axes: Any) -> bool:
    return bool(axes.lines or axes.patches or axes.collections or axes.images or axes.artists or axes.containers)


def _of_axes(axes: Any) -> Chart:
    _count(axes)
    lines = [line for line in axes.lines if _is_data(line, axes)]
    wedges = [patch for patch in axes.patches if type(patch).__name__ == "Wedge"]
    if wedges:
        return {"type": "pie", "title": _title(axes), "elements": _slices(axes, wedges)}
    boxes = _boxes(axes, lines)
    if boxes:
        return {"type": "box_and_whisker", **_described(axes), "elements": boxes}
    bars = [container for container in axes.containers if type(container).__name__ == "BarContainer"]
    if bars:
        return _bar_chart(axes, bars)
    scatters = [drawn for drawn in axes.collections if type(drawn).__name__ == "PathCollection"]
    if scatters:
        return {"type": "scatter", **_described(axes), **_ticks(axes), "elements": _points_of(axes, scatters, lines)}
    if lines:
        return {"type": "line", **_described(axes), **_ticks(axes), "elements": _points_of(axes, [], lines)}
    return {"type": "unknown", "title": _title(axes), "elements": []}


def _count(axes: Any) -> None:
    points = sum(len(line.get_xdata(orig=False)) for line in axes.lines) + len(axes.patches)
    points += sum(len(drawn.get_offsets()) for drawn in axes.collections)
    if points > MAX_POINTS:
        raise _TooLargeError


def _is_data(line: Any, axes: Any) -> bool:
    """Not a reference line: axhline and axvline measure one direction in parts of the axes."""
    return bool(line.get_transform() == axes.transData) and len(line.get_xdata(orig=False)) > 0


# What all kinds tell.


def _title(axes: Any) -> Optional[str]:
    return axes.get_title() or None


def _described(axes: Any) -> Chart:
    x_label, y_label = axes.get_xlabel() or None, axes.get_ylabel() or None
    return {
        "title": _title(axes),
        "x_label": x_label,
        "y_label": y_label,
        "x_unit": _unit(x_label),
        "y_unit": _unit(y_label),
    }


def _unit(label: Optional[str]) -> Optional[str]:
    """What stands in ` (...)` or `[...]` of a label."""
    found = _UNIT.search(label or "")
    return (found.group("round") or found.group("square") or None) if found else None


def _ticks(axes: Any) -> Chart:
    told: Chart = {}
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        scale = _Scale(axis)
        told[f"{name}_ticks"] = [scale.tick(tick) for tick in axis.get_ticklocs()]
        told[f"{name}_tick_labels"] = [str(label.get_text()) for label in axis.get_ticklabels()]
        told[f"{name}_scale"] = scale.name
    return told


class _Scale:
    """What the numbers along one axis stand for."""

    def __init__(self, axis: Any) -> None:
        self._axis = axis
        get_converter = getattr(axis, "get_converter", None)
        converter = get_converter() if get_converter is not None else axis.converter
        kind = type(converter).__name__
        # pandas plots its periods as ordinals, and leaves their frequency at the axes.
        self._frequency = getattr(axis.axes, "freq", None) if axis is axis.axes.xaxis else None
        self._categories: Dict[int, str] = {}
        self.name = str(axis.get_scale())
        if self._frequency is not None or kind in _DATE_CONVERTERS:
            self.name = "datetime"
        elif kind == "StrCategoryConverter":
            self.name = "categorical"
            mapping = getattr(axis.units, "_mapping", {})
            self._categories = {int(number): str(name) for name, number in mapping.items()}

    def value(self, number: Any) -> Any:
        """A plotted number as what was plotted: a number, an ISO time, a category."""
        if not math.isfinite(number):
            return None
        if self.name == "datetime":
            return self._time(float(number))
        if self._categories and float(number).is_integer():
            return self._categories.get(int(number), float(number))
        return float(number)

    def tick(self, number: Any) -> Any:
        """A tick's place: categories keep their numbers."""
        return self.value(number) if self.name == "datetime" else float(number)

    def _time(self, number: float) -> Any:
        if self._frequency is not None:
            period = importlib.import_module("pandas").Period(ordinal=int(number), freq=self._frequency)
            return str(period.start_time.isoformat())
        try:
            moment: datetime.datetime = importlib.import_module("matplotlib.dates").num2date(number)
        except (ValueError, OverflowError):
            return number
        return moment.replace(tzinfo=None).isoformat()

    def label(self, number: Any) -> str:
        """A place on the axis in words: its category, its tick's label, or the number."""
        if self.name == "categorical":
            return str(self.value(round(number)))
        if self.name == "datetime":
            return str(self.value(number))
        # Grouped bars stand beside the tick that names them.
        named = [(abs(place - number), text) for place, text in zip(self._axis.get_ticklocs(), self._fixed_labels())]
        distance, text = min(named, default=(math.inf, ""))
        return text if text and distance <= MAX_LABEL_DISTANCE else f"{float(number):g}"

    def _fixed_labels(self) -> List[str]:
        """Labels that were set by hand; those that matplotlib makes up are only the numbers, rounded."""
        if type(self._axis.get_major_formatter()).__name__ not in ("FixedFormatter", "FuncFormatter"):
            return []
        return [str(label.get_text()) for label in self._axis.get_ticklabels()]


_DATE_CONVERTERS = frozenset(
    (
        "DateConverter",
        "ConciseDateConverter",
        "_SwitchableDateConverter",
        "DatetimeConverter",  # pandas registers its own
    )
)


# Lines and scatters.


def _points_of(axes: Any, scatters: Sequence[Any], lines: Sequence[Any]) -> List[Chart]:
    x_scale, y_scale = _Scale(axes.xaxis), _Scale(axes.yaxis)
    elements: List[Chart] = []
    for kind, drawn in [("Scatter", scatter) for scatter in scatters] + [("Line", line) for line in lines]:
        pairs = drawn.get_offsets() if kind == "Scatter" else zip(*drawn.get_data(orig=False))
        number = sum(element["kind"] == kind for element in elements) + 1
        elements.append(
            {
                "kind": kind,
                "label": _label(drawn, f"{kind} {number}"),
                "points": [[x_scale.value(_number(x)), y_scale.value(_number(y))] for x, y in pairs],
            }
        )
    return [{"label": element["label"], "points": element["points"]} for element in elements]


def _number(value: Any) -> float:
    """A coordinate; masked ones are no number."""
    return math.nan if getattr(value, "mask", False) is True else float(value)


def _label(artist: Any, otherwise: str) -> str:
    label = str(artist.get_label())
    return otherwise if not label or label.startswith("_") else label


# Bars.


def _bar_chart(axes: Any, containers: Sequence[Any]) -> Chart:
    is_horizontal = getattr(containers[0], "orientation", "vertical") == "horizontal"
    told = _described(axes)
    if is_horizontal:
        told.update(x_label=told["y_label"], y_label=told["x_label"], x_unit=told["y_unit"], y_unit=told["x_unit"])
    scale = _Scale(axes.yaxis if is_horizontal else axes.xaxis)
    elements: List[Chart] = []
    for number, container in enumerate(containers, 1):
        group = _label(container, f"Group {number}")
        for bar in container.patches:
            middle, value = (
                (bar.get_y() + bar.get_height() / 2, bar.get_width())
                if is_horizontal
                else (bar.get_x() + bar.get_width() / 2, bar.get_height())
            )
            elements.append({"label": scale.label(middle), "group": group, "value": _finite(value)})
    return {"type": "bar", **told, "elements": elements}


def _finite(value: Any) -> Optional[float]:
    return float(value) if math.isfinite(value) else None


# Pies.


def _slices(axes: Any, wedges: Sequence[Any]) -> List[Chart]:
    texts = [text.get_text() for text in axes.texts]
    # pie() writes each wedge's label and then, if asked, its share.
    step = len(texts) // len(wedges) if texts and len(texts) % len(wedges) == 0 else 1
    elements: List[Chart] = []
    for number, wedge in enumerate(wedges):
        label = _label(wedge, "")
        if not label and number * step < len(texts):
            label = texts[number * step]
        # matplotlib computes with 32 bits: 324 degrees come out as 323.99999.
        elements.append(
            {"label": label, "angle": round(float(wedge.theta2 - wedge.theta1), 3), "radius": float(wedge.r)}
        )
    return elements


# Boxes and whiskers.


class _Box(NamedTuple):
    """A box in its own directions: `along` is where the values are, `across` where the boxes stand side by side."""

    low: float
    high: float
    left: float
    right: float

    @property
    def middle(self) -> float:
        return (self.left + self.right) / 2


Path = List[Tuple[float, float]]  # (across, along)


def _boxes(axes: Any, lines: Sequence[Any]) -> List[Chart]:
    outlines = [_vertices(line.get_xydata()) for line in lines] + [
        _vertices(patch.get_path().vertices) for patch in axes.patches if type(patch).__name__ == "PathPatch"
    ]
    for is_vertical in (True, False):
        found = _boxes_along(outlines, lines, is_vertical)
        if found:
            scale = _Scale(axes.xaxis if is_vertical else axes.yaxis)
            return [{"label": scale.label(middle), **told} for middle, told in found]
    return []


def _boxes_along(outlines: Sequence[Path], lines: Sequence[Any], is_vertical: bool) -> List[Tuple[float, Chart]]:
    paths = [_turned(path, is_vertical) for path in outlines]
    segments = [path for path in paths if len(path) == 2]
    loose = [
        _turned(_vertices(line.get_xydata()), is_vertical)
        for line in lines
        if line.get_linestyle() in ("None", "", " ")
    ]
    found: List[Tuple[float, Chart]] = []
    for box in (_box(path) for path in paths):
        told = _whiskers(box, segments, loose) if box is not None else None
        if box is not None and told is not None and (box.middle, told) not in found:
            found.append((box.middle, told))
    return sorted(found, key=lambda one: one[0])


def _vertices(array: Any) -> Path:
    return [(float(x), float(y)) for x, y in array]


def _turned(path: Path, is_vertical: bool) -> Path:
    return path if is_vertical else [(y, x) for x, y in path]


def _box(path: Path) -> Optional[_Box]:
    """The box that a closed outline draws, from its lower left on; a patch has its first corner twice at the end.

    It has four corners, or ten with a notch, whose ends (a confidence interval) may lie outside the box.
    """
    if len(path) not in (5, 6, 11, 12):
        return None
    across, along = [point[0] for point in path], [point[1] for point in path]
    low, high = (along[0], along[5]) if len(path) > 6 else (along[0], along[2])
    corners = path[:5] if len(path) <= 6 else [path[0], path[1], path[5], path[6], path[10]]
    left, right = min(across), max(across)
    expected = [(left, low), (right, low), (right, high), (left, high), (left, low)]
    is_closed = all(_same(x, u) and _same(y, v) for (x, y), (u, v) in zip(corners, expected))
    return _Box(low, high, left, right) if is_closed and left < right else None


def _whiskers(box: _Box, segments: Sequence[Path], loose: Sequence[Path]) -> Optional[Chart]:
    """The five numbers of a box: its whiskers stand at its middle, its median crosses it."""
    ends: List[float] = []
    level: List[Tuple[float, float]] = []  # (width, place) of what crosses the box
    for (x0, y0), (x1, y1) in segments:
        if _same(x0, box.middle) and _same(x1, box.middle) and (_same(y0, box.low) or _same(y0, box.high)):
            ends.append(y1)
        elif _same(y0, y1) and box.low <= y0 <= box.high and box.left <= min(x0, x1) and max(x0, x1) <= box.right:
            level.append((abs(x1 - x0), y0))
    if len(ends) < 2 or not level:
        return None
    # Caps may lie on the box's edge; they are shorter than the median, or, beside a notch, at the whiskers' ends.
    _, _, median = max((width, not any(_same(y, end) for end in ends), y) for width, y in level)
    return {
        "min": min(*ends, box.low),
        "first_quartile": box.low,
        "median": median,
        "third_quartile": box.high,
        "max": max(*ends, box.high),
        "outliers": [y for path in loose if all(_same(x, box.middle) for x, _ in path) for _, y in path],
    }


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)
