"""The trace of one picture as a page: every number of a forward and a backward pass, in a file of its own.

    trace(model, x, y, out="trace.html")

The page needs no network and no server: what it shows, and the program that shows it, lie in the one file.
What is shown are the recorded values: see :mod:`minires.debug.trace_page.pack` for which of them are kept.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from minires.backend import Array
from minires.debug.recording import Recording, record_passes
from minires.debug.trace_page import pack
from minires.errors import ConfigError, ShapeError
from minires.files import PAGE, atomic_write, with_ending
from minires.nn.module import Module
from minires.tensor import Tensor

LIMIT = 15_000_000  # bytes of a page
SCRIPTS = (  # the parts of one script, in their order
    "words.js", "data.js", "windows.js", "formula.js", "products.js", "pool.js", "moved.js", "arithmetic.js",
    "draw.js", "map.js", "panels.js", "kernels.js", "marks.js", "plot.js", "search.js", "page.js",
)  # fmt: skip


def trace(
    model: Module,
    x: Any,
    y: Any = None,
    *,
    out: str | os.PathLike[str],
    name: str | None = None,
    classes: Sequence[str] | None = None,
    picture: Array | None = None,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Record one picture's way through a model, forward and backward, and write the page ``out``.

    ``y`` is its label. Without it the loss is that of the model's own guess, or where that is about 0, so
    that its gradients are noise, as if the second guess were right; the page says so. ``name`` is the title,
    ``classes`` the names of the labels, and ``picture`` the picture as people see it. The model runs in its
    own mode and is left as it was. ``changes`` of it, ``{"res3b": "drop"}``, are made meanwhile, as
    ``minires.intervene`` makes them, and the page says so. Of each operation as many channels are kept as fit
    into 15 MB.

    Shapes: x (H, W, C) or (1, H, W, C), as the model takes it; y a class number, or probabilities (K,);
    picture (H, W, 3), uint8.
    Raises: ShapeError if x is not one picture, does not fit the model, or the picture is none; ConfigError if
    the classes are not as many as the scores; DataError if the label is none of them; MiniresError if a page
    would be too large, or the file cannot be written; ConfigError if ``out`` does not end in .html.
    """
    with_ending("out", out, PAGE, "a page")
    content = trace_html(model, x, y, name=name, classes=classes, picture=picture, changes=changes)
    with atomic_write(out) as file:
        file.write(content)


def trace_html(
    model: Module,
    x: Any,
    y: Any = None,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    picture: Array | None = None,
    changes: Mapping[str, Any] | None = None,
) -> bytes:
    """The page that :func:`trace` writes, which says what is given and raised."""
    x = np.asarray(x.numpy() if isinstance(x, Tensor) else x)
    x = x[None] if x.ndim == 3 else x
    if x.ndim < 2 or len(x) != 1:
        raise ShapeError(f"trace: x must be one picture, (H, W, C) or (1, H, W, C), not {x.shape}")
    if picture is not None and (picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3):
        raise ShapeError(f"trace: picture must be uint8 (H, W, 3), not {picture.dtype} {picture.shape}")
    labels = None if y is None else np.asarray(y)[None]
    # Kernels are compiled or read from the disk now, so that the times of the second pass are true.
    first = record_passes(model, x, labels, changes=changes)
    scores = first.logits
    chosen = first.guessed and first.noise and scores is not None and scores.shape[-1] > 1
    if chosen and scores is not None:
        labels = scores.argsort(axis=1)[:, -2]
    recording = record_passes(model, x, labels, changes=changes)
    title = name or type(model).__name__
    about = {**_about(recording, title, classes, picture), "chosen": chosen}
    # What stands around the chunks counts, too.
    room = LIMIT - len(_page(title, [])) - 64 * (len(recording.operations) + 1)
    return _page(title, pack.pack(recording, about, room))


def _about(
    recording: Recording, title: str, classes: Sequence[str] | None, picture: Array | None
) -> dict[str, Any]:
    """What the page says of the pass as a whole."""
    logits, labels = recording.logits, recording.labels
    if classes is not None and (logits is None or len(classes) != logits.shape[-1]):
        scores = "a single value" if logits is None else f"{logits.shape[-1]} scores"
        raise ConfigError(f"trace: {len(classes)} classes are named, but the model gives {scores}")
    # A label that is given as probabilities is the most probable of them.
    label = None if labels is None else int(labels[0] if labels.ndim == 1 else labels[0].argmax())
    return {
        "name": title, "classes": None if classes is None else list(map(str, classes)), "label": label,
        "guess": _guess(logits), "guessed": recording.guessed, "noise": recording.noise,
        "training": recording.training, "changes": [[one, one.chinese] for one in recording.changes],
        "picture": None if picture is None else {
            "height": picture.shape[0], "width": picture.shape[1],
            "rgb": base64.b64encode(np.ascontiguousarray(picture).tobytes()).decode(),
        },
    }  # fmt: skip


def _guess(logits: Array | None) -> dict[str, Any] | None:
    """The most probable label."""
    if logits is None:
        return None
    scores = np.asarray(logits[0], np.float64)
    powers = np.exp(scores - scores.max())
    label = int(powers.argmax())
    probability = float(powers[label] / powers.sum())
    return {"label": label, "probability": probability if np.isfinite(probability) else "NaN"}


def _page(title: str, chunks: Sequence[str]) -> bytes:
    """The page with its data. It may run its own script and use its own style, and load nothing at all."""
    folder = resources.files("minires.debug.trace_page") / "page"
    style = (folder / "page.css").read_text(encoding="utf-8")
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    data = [f'<script type="text/plain" id="chunk{i}">{chunk}</script>' for i, chunk in enumerate(chunks)]
    parts = {
        "title": html.escape(title), "policy": policy, "style": style, "data": "\n".join(data),
        "script": script,
    }  # fmt: skip
    page = (folder / "page.html").read_text(encoding="utf-8")
    # In one go, so that a title with such a place in it stays what it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], page).encode(errors="backslashreplace")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
