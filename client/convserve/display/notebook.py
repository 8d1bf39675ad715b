"""A figure that a notebook shows: as a cell's value, and else at the cell's end, as it shows pyplot's figures."""

from __future__ import annotations

import io
import sys
from typing import Any

from matplotlib.figure import Figure

from convserve.errors import InvalidRequestError

_waiting: list[NotebookFigure] = []
"""Figures of the cell that runs which nobody has shown or saved yet."""


class NotebookFigure(Figure):
    """A matplotlib figure without pyplot, which a notebook shows by itself, in a loop too."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        shell = _notebook()
        if shell is not None:
            if _show_waiting not in shell.events.callbacks["post_run_cell"]:
                shell.events.register("post_run_cell", _show_waiting)
            _waiting.append(self)

    def show(self, warn: bool = True) -> None:  # noqa: ARG002 (matplotlib's own argument)
        """Shows the figure in a notebook at once, before what the cell prints next.

        Raises:
            InvalidRequestError: If this is no notebook; `.savefig(path)` writes the figure to a file.
        """
        if _notebook() is None:
            raise InvalidRequestError.for_field("show", "a notebook", "a program: .savefig(path) writes the figure")
        from IPython.display import display

        display(self)  # type: ignore[no-untyped-call]

    def draw(self, renderer: Any) -> None:
        """Draws the figure, to be shown or written, after which no notebook shows it by itself.

        All ways lead here: `savefig`, and what IPython does with figures once pyplot is imported.
        """
        if self in _waiting:
            _waiting.remove(self)
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            self.savefig(file, format="png")
            return file.getvalue()


def _show_waiting(*_: Any) -> None:
    for figure in list(_waiting):
        figure.show()


def _notebook() -> Any:
    """Returns IPython's shell if it has a kernel, so that somebody sees pictures, or None."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell if getattr(shell, "kernel", None) is not None else None
