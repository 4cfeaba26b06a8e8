"""What ``watch.json`` of a run says, and the same as a table: ``layers.csv``, or rows in Python.

Of each epoch that was looked at there are figures of three kinds of things, each with a list that names them:

    layers      those with weights, or, of very many, the blocks: mean, std, gradient, weight, update
    responses   each call of a layer that multiplies by weights: the standard deviation of its response
    blocks      each run of a residual block: the standard deviations of branch and shortcut

What stands in two of them under one path is one row of the table. Files of older versions have layers alone.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minires.errors import CheckpointError, ConfigError
from minires.files import atomic_write
from minires.train import continuing, probe, run_folder
from minires.train.fields import Optional, between, exactly, listing, real, record, shortened, text

FORMAT = 1
SAMPLES = 32  # pictures that are shown
LAYERS = (*probe.FIGURES, "update")
_NAMED = listing(record(path=text, kind=text))
_NUMBERS = listing(Optional(real))
KIND = record(
    kind=exactly("watch"), format=exactly(FORMAT), classes=listing(text), layers=_NAMED,
    responses=Optional(_NAMED), blocks=Optional(_NAMED),  # older files have none of these
    samples=Optional(record(count=between(1, SAMPLES), columns=between(1), labels=listing(Optional(text)))),
    epochs=listing(record(
        epoch=between(1), step=between(0),
        layers=record(**{name: _NUMBERS for name in LAYERS}),
        response=Optional(_NUMBERS), branch=Optional(_NUMBERS), shortcut=Optional(_NUMBERS),
        confusion=Optional(record(cells=listing(listing(between(0), count=3)), left_out=between(0))),
    )),
)  # fmt: skip


class LayerFigures(NamedTuple):
    """The figures of a layer or a block after an epoch, None where there is none.

    path, kind: where it stands in the model, and its class.
    mean, std: of what it hands on (behind a ReLU in its own pass, too).
    response: the standard deviation behind its batch norm and before ReLU and addition.
    gradient, weight: the norms of the gradient of its weights, and of these.
    update: how far the epoch's last step moved the weights, as a share of their norm.
    branch, shortcut: of a residual block, the standard deviations of its two ways as they are added.
    """

    epoch: int
    step: int
    path: str
    kind: str
    mean: float | None = None
    std: float | None = None
    response: float | None = None
    gradient: float | None = None
    weight: float | None = None
    update: float | None = None
    branch: float | None = None
    shortcut: float | None = None

    @property
    def share(self) -> float | None:
        """How strong the branch is beside the shortcut.

        >>> LayerFigures(1, 100, "res2a", "ResidualBlock", branch=0.5, shortcut=2.0).share
        0.25
        """
        return self.branch / self.shortcut if self.branch is not None and self.shortcut else None


def layer_figures(run: str | os.PathLike[str]) -> list[LayerFigures]:
    """The figures of all layers and blocks of the run in a folder, epoch by epoch, as far as it has come.

    A run writes them unless it is trained with ``watch=False``; not each epoch of a short one is looked at.
    A layer that the model calls several times has a row for each call.

    Raises: CheckpointError if the run has none, or its watch.json cannot be read.
    """
    if not isinstance(run, str | os.PathLike):
        raise ConfigError(f"the figures of a run are read from its folder; give its path, not {run!r}")
    path = Path(run) / continuing.WATCH
    if not os.path.lexists(path):
        raise CheckpointError(
            f"there is no {path}: nothing was looked at yet, the run was trained with watch=False "
            "(--no-watch), or it is no run"
        )
    content = run_folder.read_json(path)
    try:
        KIND("", content)
    except ConfigError as error:
        raise CheckpointError(f"{path} does not say what it should: {shortened(error)}") from error
    return list(rows(content))


def rows(content: Mapping[str, Any]) -> Iterator[LayerFigures]:
    """The rows of what ``watch.json`` holds."""
    lists = [content["layers"], content.get("responses") or [], content.get("blocks") or []]
    keys = [numbered(one["path"] for one in named) for named in lists]
    kinds: dict[tuple[str, int], str] = {}
    for places, named in zip(keys, lists, strict=True):
        for key, one in zip(places, named, strict=True):
            kinds.setdefault(key, one["kind"])
    for look in content["epochs"]:
        figures: dict[tuple[str, int], dict[str, float | None]] = {key: {} for key in kinds}
        of_look = [look["layers"], {"response": look.get("response") or []},
                   {name: look.get(name) or [] for name in ("branch", "shortcut")}]  # fmt: skip
        for places, numbers in zip(keys, of_look, strict=True):
            for name in numbers:
                for key, value in zip(places, numbers[name], strict=False):  # what came later is not there
                    if name in LayerFigures._fields:
                        figures[key][name] = value
        for key, found in figures.items():
            yield LayerFigures(look["epoch"], look["step"], key[0], kinds[key], **found)


def numbered(paths: Iterable[str]) -> list[tuple[str, int]]:
    """Each path with how often it was there before.

    >>> numbered(["a", "b", "a"])
    [('a', 0), ('b', 0), ('a', 1)]
    """
    seen: Counter[str] = Counter()
    found = []
    for path in paths:
        found.append((path, seen[path]))
        seen[path] += 1
    return found


def placed(
    named: list[dict[str, str]], paths: Sequence[str], kinds: Mapping[str, str], **values: Sequence[Any]
) -> dict[str, list[Any]]:
    """The ``values`` of what was found under these ``paths``, in the places that ``named`` has for them; what
    is new gets a place at its end.

    >>> named = [{"path": "a", "kind": "Conv2d"}, {"path": "b", "kind": "Linear"}]
    >>> placed(named, ["b", "c"], {"c": "Conv2d"}, response=[2.0, 3.0])
    {'response': [None, 2.0, 3.0]}
    >>> named[2]
    {'path': 'c', 'kind': 'Conv2d'}
    """
    places = {key: at for at, key in enumerate(numbered(one["path"] for one in named))}
    keys = numbered(paths)
    for key in keys:
        if key not in places:
            places[key] = len(named)
            named.append({"path": key[0], "kind": kinds.get(key[0], "")})
    found: dict[str, list[Any]] = {name: [None] * len(named) for name in values}
    for name, numbers in values.items():
        for key, value in zip(keys, numbers, strict=True):
            found[name][places[key]] = value
    return found


def write_table(path: Path, content: Mapping[str, Any]) -> None:
    """Write the rows as CSV; what was not measured is an empty field."""
    lines = io.StringIO(newline="")
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(LayerFigures._fields)
    table.writerows(rows(content))
    with atomic_write(path) as file:
        file.write(lines.getvalue().encode(errors="backslashreplace"))


def check_table(path: Path) -> None:
    """Raises: CheckpointError if a file of somebody else stands where the table is to be written."""
    if not os.path.lexists(path):
        return
    header = ",".join(LayerFigures._fields).encode() + b"\n"
    if path.is_file() and not path.is_symlink():
        with open(path, "rb") as file:
            first = file.read(65536)
        if first.startswith(header) or not first.strip(b"\0"):  # what a power failure leaves
            return
    raise CheckpointError(
        f"{path} was not written by minires; it stays as it is, and nothing is written over it"
    )
