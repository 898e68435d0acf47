"""Objects to MIME bundles: what IPython does not show by itself, and what keeps a bundle within bounds.

IPython's formatters make most representations. Here are added: `e2b/data` for a DataFrame, `e2b/chart` and PNG for a
matplotlib figure, `application/json` for a list or a dict, and the displaying of PIL images that are shown or saved.
Nothing is imported for it: types are known by name, and modules are changed once they have been imported.
"""

import base64
import importlib
import math
import sys
from types import ModuleType
from typing import Any, Callable, Dict, List, Optional, Tuple

from glovebox_guest import charts, context_link, import_hooks

DATA_MIME = "e2b/data"
CHART_MIME = "e2b/chart"
#: Together with a chart's, these stay below wire.MAX_MESSAGE_VALUES; what is larger is shown without that representation.
MAX_DATA_CELLS = 150_000
MAX_JSON_VALUES = 100_000
MAX_JSON_DEPTH = 100


def register(formatters: Dict[str, Any], make_formatter: Callable[[str, str], Any]) -> None:
    """Add to IPython's formatters (by MIME type); `make_formatter(mime, method)` makes one for a new type."""
    formatters[DATA_MIME] = data = make_formatter(DATA_MIME, "_repr_e2b_data_")
    data.for_type_by_name("pandas.core.frame", "DataFrame", columns_of)
    data.for_type_by_name("pandas", "DataFrame", columns_of)  # its name since pandas 3
    formatters[CHART_MIME] = chart = make_formatter(CHART_MIME, "_repr_e2b_chart_")
    chart.for_type_by_name("matplotlib.figure", "Figure", charts.of_figure)
    formatters["image/png"].for_type_by_name("matplotlib.figure", "Figure", _png_of_figure)
    json_formatter = formatters["application/json"]
    json_formatter.for_type(list, json_of)
    json_formatter.for_type(dict, json_of)


def columns_of(frame: Any) -> Optional[Dict[str, List[Any]]]:
    """A DataFrame as lists by column; None when it is too large."""
    if frame.shape[0] * frame.shape[1] > MAX_DATA_CELLS:
        return None
    return {str(name): [_cell(value) for value in column.tolist()] for name, column in frame.items()}


def _cell(value: Any) -> Any:
    """One cell as JSON has it: missing is null, times are ISO, what JSON has no word for is text."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    isoformat = getattr(value, "isoformat", None)
    if isoformat is None:
        return str(value)
    text = str(isoformat())
    return None if text == "NaT" else text


class _TooLargeError(Exception):
    pass


def json_of(value: Any) -> Any:
    """A list or a dict as plain JSON; None when it holds what JSON has no word for, or too much."""
    try:
        return _Plain().take(value, 0)
    except (TypeError, ValueError, _TooLargeError):
        return None


class _Plain:
    """Copies a value, counting: user's lists may be huge, deep, or contain themselves."""

    def __init__(self) -> None:
        self._left = MAX_JSON_VALUES

    def take(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > MAX_JSON_DEPTH:
            raise _TooLargeError
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            if not math.isfinite(value):
                raise ValueError("JSON has no infinity")
            return float(value)
        if isinstance(value, (list, tuple)):
            return [self.take(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return {self._key(key): self.take(item, depth + 1) for key, item in value.items()}
        raise TypeError("JSON has no such type")

    def _key(self, key: Any) -> str:
        if isinstance(key, str):
            return key
        # As json.dumps does with these.
        if isinstance(key, bool) or key is None:
            return {True: "true", False: "false", None: "null"}[key]
        if isinstance(key, (int, float)):
            return str(key)
        raise TypeError("JSON's keys are text")


def _png_of_figure(figure: Any) -> Optional[str]:
    pylabtools = importlib.import_module("IPython.core.pylabtools")
    # None for a figure without axes.
    image: Optional[str] = pylabtools.print_figure(figure, fmt="png", bbox_inches="tight", base64=True)
    return image


def fit(bundle: Dict[Any, Any]) -> Tuple[Dict[str, Any], List[str]]:
    """A bundle that can be sent, and the MIME types that had to go: not JSON, or too large."""
    kept: Dict[str, Any] = {}
    sizes: Dict[str, int] = {}
    dropped: List[str] = []
    for mime, value in bundle.items():
        plain = base64.b64encode(value).decode("ascii") if isinstance(value, (bytes, bytearray)) else value
        try:
            sizes[str(mime)] = len(context_link.encode({"": plain}))
            kept[str(mime)] = plain
        except ValueError:
            dropped.append(str(mime))
    while sum(sizes.values()) > context_link.MAX_MESSAGE_BYTES - 1024 or not _is_sendable(kept):
        largest = max(sizes, key=lambda mime: sizes[mime])
        del sizes[largest], kept[largest]
        dropped.append(largest)
    return kept, dropped


def _is_sendable(bundle: Dict[str, Any]) -> bool:
    try:
        context_link.encode({"event": "result", "is_main_result": False, "data": bundle})
    except ValueError:
        return False
    return True


def adapt_libraries(matplotlib_backend: str) -> None:
    """Have matplotlib and PIL show what they make here, once they are imported."""

    def adapt_matplotlib(module: ModuleType) -> None:
        module.rcParams["backend"] = matplotlib_backend

    import_hooks.after_import("matplotlib", adapt_matplotlib)
    import_hooks.after_import("PIL.Image", _adapt_pil)


def _adapt_pil(module: ModuleType) -> None:
    """`Image.show()` shows a result instead of starting a viewer; `Image.save(path)` shows what it saved."""
    image_class = module.Image
    save_to = image_class.save

    def show(self: Any, title: Optional[str] = None) -> None:
        _display(self)

    def save(self: Any, fp: Any, format: Optional[str] = None, **parameters: Any) -> None:
        save_to(self, fp, format, **parameters)
        # matplotlib saves its figures through PIL; those are shown anyway.
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if not (hasattr(fp, "write") or str(caller).startswith(("matplotlib.", "PIL."))):
            _display(self)

    save.__doc__ = save_to.__doc__
    image_class.show = show
    image_class.save = save


def _display(value: Any) -> None:
    importlib.import_module("IPython.display").display(value)
