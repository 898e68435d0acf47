"""The matplotlib backend of code contexts: figures are drawn by Agg and shown as results, at show() and after each cell.

matplotlib loads this by name (`module://glovebox_guest.mpl_backend`) when pyplot first needs a backend.
"""

import importlib
from typing import Any

from IPython.core import interactiveshell
from IPython.display import display
from matplotlib import _pylab_helpers, backend_bases
from matplotlib.backends import backend_agg

NAME = "module://glovebox_guest.mpl_backend"


def show_all() -> None:
    """Show every open figure, and close them all."""
    managers = _pylab_helpers.Gcf.get_all_fig_managers()
    try:
        for manager in managers:
            display(manager.canvas.figure)
    finally:
        if managers:
            importlib.import_module("matplotlib.pyplot").close("all")


class FigureManager(backend_bases.FigureManagerBase):
    """A figure without a window."""

    @classmethod
    def pyplot_show(cls, *, block: Any = None) -> None:
        """What pyplot.show() does."""
        show_all()

    def show(self) -> None:
        """What Figure.show() does."""
        display(self.canvas.figure)


class FigureCanvas(backend_agg.FigureCanvasAgg):
    """Agg's canvas, under our manager."""

    manager_class = FigureManager


def _register() -> None:
    shell = interactiveshell.InteractiveShell.instance()
    shell.events.register("post_execute", show_all)


_register()
