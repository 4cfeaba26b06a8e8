"""A figure of matplotlib's without a display, how its axes look, and how it becomes a file.

Matplotlib is imported only when a picture is drawn.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import IO, Any

from minires.errors import harmless
from minires.files import atomic_write

BLUE, ORANGE, GREY = "#2563a8", "#d9730d", "#6b7280"
# Fonts with Chinese letters, as systems have them.
_HAN = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Microsoft YaHei", "SimHei", "PingFang SC",
    "Hiragino Sans GB", "Heiti SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Noto Sans CJK JP",
)  # fmt: skip


def new_figure(width: float, height: float) -> Any:
    """An empty white figure of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes: Any) -> None:
    """A pale grid, and two lines instead of a frame."""
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9ca3af")


def epochs_axis(axes: Any, last: int) -> None:
    """The axis below, from the first epoch to the ``last``."""
    axes.set_xlabel("epoch", fontsize=9)
    axes.set_xlim(0.5, last + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def save_figure(
    figure: Any,
    path: str | os.PathLike[str],
    *,
    format: str = "png",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a figure, whole or not at all; warn of letters that no font here has.

    Raises: MiniresError with the file and the cause.
    """
    with atomic_write(path) as file, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        write_figure(figure, file, format=format, metadata=metadata)
    if any("missing from" in str(one.message) for one in said):
        warnings.warn(
            f"{path}: no font here has all letters of its names, and others are drawn as boxes; install one "
            "that has them, for Chinese Noto Sans CJK",
            stacklevel=3,
        )


def write_figure(
    figure: Any, file: IO[bytes], *, format: str = "png", metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a figure to an open file, in fonts that have Chinese letters where there are some."""
    from matplotlib import font_manager, rc_context

    there = set(font_manager.get_font_names())
    fonts = ["DejaVu Sans", *(name for name in _HAN if name in there)]
    with rc_context({"font.sans-serif": fonts, "svg.hashsalt": "minires"}):  # the same bits each time
        figure.savefig(file, format=format, dpi=120, metadata=metadata)


def short(text: str, most: int) -> str:
    """A name for a figure, of ``most`` letters.

    >>> short("a long name", 7)
    'a lo...'
    """
    text = harmless(text)
    return text if len(text) <= most else text[: most - 3] + "..."
