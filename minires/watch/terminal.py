"""A run in the terminal: one screen of figures, for machines without a browser."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minires.errors import harmless
from minires.train.run_folder import shown
from minires.train.telling import about
from minires.watch.reading import Reading, seconds_left

_BARS = "▁▂▃▄▅▆▇█"
PAUSE = 2.0  # seconds between two looks


def follow(
    run: str | os.PathLike[str],
    *,
    once: bool = False,
    write: Callable[[str], Any] = print,
    size: tuple[int, int] | None = None,
) -> None:
    """Show a run on one screen of ``size`` (columns, lines), anew whenever it has changed, until it has
    ended; with ``once`` only as it is now. ``write`` gets the text of a screen, and before it, where it takes
    the place of another, what clears a terminal.

    Raises: CheckpointError if there is no run in the folder.
    """
    reading = Reading(run)
    before = ""
    while True:
        content = reading.now()
        columns, lines = size or shutil.get_terminal_size()
        text = "\n".join(screen(content, columns, lines - 1))
        if once:
            write(text)
            return
        if text != before:
            write(f"\x1b[H\x1b[2J{text}")
            before = text
        if content["state"] != "running":
            return
        time.sleep(PAUSE)


def screen(content: Mapping[str, Any], columns: int = 80, lines: int = 24) -> list[str]:
    """The lines of a run, as :meth:`Reading.now` gives it, cut to a screen."""
    config, progress, rows = content["config"], content["progress"], content["metrics"]
    found = [f"{_state(content)}: {config.get('model', '?')} on {config.get('data', '?')}, {content['run']}"]
    if progress:
        done = progress["step"] / max(1, progress["epochs"] * progress["batches"])
        width = max(10, min(40, columns - 50))
        text = f"{'█' * round(width * done):░<{width}} {100 * done:.0f}%  step {progress['step']:,}"
        epoch = min(progress["epoch"] + 1, progress["epochs"])
        text += f", epoch {epoch} of {progress['epochs']}"
        left = seconds_left(content)
        found.append(text + (f", {about(left)} left" if left is not None else ""))
    found.append("")
    curves: list[tuple[str, str, Callable[[float], str]]] = [
        ("training loss", "train_loss", shown), ("validation loss", "val_loss", shown),
        ("training accuracy", "train_accuracy", _percent), ("validation accuracy", "val_accuracy", _percent),
        ("learning rate", "lr", "{:.2g}".format),
    ]  # fmt: skip
    for name, key, said in curves:
        values = [row[key] for row in rows if row[key] is not None]
        if values:
            found.append(f"{name:<20} {sparks(values, max(8, min(48, columns - 34)))}  {said(values[-1])}")
    if not rows:
        found.append("no epoch is done yet")
    found += ["", *_layers(content["inside"], columns, max(0, lines - len(found) - 9))]
    if content["summary"] and content["summary"]["test_accuracy"] is not None:
        found.append(f"test accuracy {_percent(content['summary']['test_accuracy'])}")
    found += [f"damaged: {one}" for one in content["broken"]]
    said_lines = (progress or {}).get("said") or []
    room = max(0, lines - len(found))
    found += said_lines[-room:] if room else []
    plain = [harmless(line) for line in found[:lines]]
    return [line if len(line) < columns else f"{line[: columns - 2]}…" for line in plain]


def sparks(values: Sequence[float], width: int) -> str:
    """A small curve of these numbers, of at most so many letters.

    >>> sparks([0.0, 1.0, 2.0, 7.0], 10)
    '▁▂▃█'
    """
    if len(values) > width:  # the last of each stretch, and so the last of all
        values = [values[(place + 1) * len(values) // width - 1] for place in range(width)]
    least, most = min(values), max(values)
    range_ = (most - least) or 1.0
    return "".join(_BARS[round(7 * (value - least) / range_)] for value in values)


def _layers(inside: Mapping[str, Any] | None, columns: int, room: int) -> list[str]:
    """The layers as the last look found them; of many, some from the first to the last."""
    if not inside:
        return ["layers: this run has written nothing of them (trained with --no-watch, or long ago)"]
    if not inside["epochs"] or room < 3:
        return ["layers: none were looked at yet"] if room >= 1 else []
    last = inside["epochs"][-1]
    names = [layer["path"] for layer in inside["layers"]]
    ways = zip(last.get("branch") or [], last.get("shortcut") or [], strict=False)
    shares = [branch / shortcut for branch, shortcut in ways if branch is not None and shortcut]
    count = min(len(names), max(1, room - 2 - bool(shares)))
    places = sorted({round(n * (len(names) - 1) / max(1, count - 1)) for n in range(count)})
    head = f"{'after epoch ' + str(last['epoch']):<24} activations (std)  gradient    update"
    # By the path of a layer; in a file of an older version there are none.
    named = [one["path"] for one in inside.get("responses") or []]
    responses = dict(zip(named, last.get("response") or [], strict=False))
    responses = {path: response for path, response in responses.items() if path in names}
    found = [head + ("  response" if responses else "")]
    for place in places:
        figures = last["layers"]
        std, gradient, update = (_short(figures[name][place]) for name in ("std", "gradient", "update"))
        response = f"  {_short(responses.get(names[place])):>8}" if responses else ""
        found.append(f"{names[place][-24:]:<24} {std:>17}  {gradient:>8}  {update:>8}{response}")
    if shares:
        ends = f"{_short(shares[0])} to {_short(shares[-1])}"
        found.append(f"{'branch / shortcut':<24} {sparks(shares, max(8, min(48, columns - 48)))}  {ends}")
    return [*found, ""]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _state(content: Mapping[str, Any]) -> str:
    if content["state"] == "running":
        return f"in training by {content['who']}"
    if content["state"] == "stopped" and (content["summary"] or {}).get("diverged"):
        return "stopped, as it diverged"
    return {"finished": "finished", "stopped": "stopped", "gone": "the folder is gone"}[content["state"]]
