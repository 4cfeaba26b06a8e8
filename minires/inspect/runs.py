"""Several runs beside each other: their curves and figures, what differs in their settings, and the mean and
spread of runs that differ only in the seed.

compared = compare_runs(["runs/a", "runs/b"])
compared.draw("compare.png")
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minires.errors import CheckpointError, ConfigError, as_number
from minires.files import why
from minires.inspect.runs_drawing import Curve, draw_curves
from minires.limits import regular_file
from minires.train import continuing, run_folder
from minires.train.config import Config
from minires.train.state import FREE

Row = Mapping[str, float | None]


@dataclass(frozen=True)
class Run:
    """A run folder as it stands: ``rows`` are its epochs so far, ``summary`` is None before its end.

    ``label`` is the name of its folder, or the whole path where two folders have one name.
    """

    folder: str
    label: str
    config: Config
    rows: tuple[Row, ...]
    summary: Mapping[str, Any] | None
    finished: bool

    @property
    def epochs(self) -> int:
        """How many epochs it has come to the end of."""
        return len(self.rows)

    @property
    def dataset(self) -> str:
        named = (self.summary or {}).get("dataset")
        return named if isinstance(named, str) else Path(self.config.data).name

    @property
    def accuracy(self) -> float | None:
        """The share of test pictures that it gets right."""
        return self._figure("test_accuracy")

    @property
    def loss(self) -> float | None:
        """The mean cross-entropy of the test pictures."""
        return self._figure("test_loss")

    @property
    def seconds(self) -> float | None:
        """How long it took, validation included; of one that is not finished, the training of its epochs."""
        if (whole := self._figure("seconds")) is not None:
            return whole
        return sum(row["seconds"] or 0.0 for row in self.rows) if self.rows else None

    @property
    def tested(self) -> tuple[int, int] | None:
        """How many test pictures it got right when it was tested, and of how many."""
        count = self._figure("test_pictures")
        if count is None or self.accuracy is None:
            return None
        return round(self.accuracy * count), round(count)

    def _figure(self, name: str) -> float | None:
        value = as_number((self.summary or {}).get(name))
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Group:
    """Runs whose settings are the same but for the seed, and those that may change when a run goes on."""

    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({run.config.seed for run in self.runs}))

    @property
    def of_each_seed(self) -> tuple[Run, ...]:
        """One run of each seed, if possible a finished one: a second would say nothing of the spread."""
        ordered = sorted(self.runs, key=lambda run: run.finished)
        return tuple({run.config.seed: run for run in ordered}.values())

    @property
    def accuracy(self) -> tuple[float, float | None] | None:
        """Mean and spread of the test accuracy over the seeds: see :func:`spread`."""
        return spread([run.accuracy for run in self.of_each_seed])

    @property
    def loss(self) -> tuple[float, float | None] | None:
        return spread([run.loss for run in self.of_each_seed])

    @property
    def seconds(self) -> tuple[float, float | None] | None:
        return spread([run.seconds if run.finished else None for run in self.of_each_seed])


@dataclass(frozen=True)
class Compared:
    """Several runs; ``differences`` has for each setting that is not the same in all its value in each."""

    runs: tuple[Run, ...]
    groups: tuple[Group, ...]
    differences: Mapping[str, tuple[Any, ...]]

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Draw the curves of all runs in one figure, a .png or .svg; runs of a group have one colour.

        Raises: ConfigError for another ending, or if there is a file at ``path`` that is no such figure;
        MiniresError if it cannot be written.
        """
        curves = [
            Curve(run.label if len(group.runs) == 1 else f"{run.label} (seed {run.config.seed})", run.rows, k)
            for k, group in enumerate(self.groups)
            for run in group.runs
        ]
        draw_curves(path, curves)


def compare_runs(folders: Sequence[str | os.PathLike[str]]) -> Compared:
    """Read run folders, of finished runs and of others, and put them beside each other.

    Raises: ConfigError for fewer than two, or one that is given twice; CheckpointError if one is no run
    folder, or a file in it is damaged.
    """
    if isinstance(folders, str | os.PathLike) or len(folders) < 2:
        raise ConfigError("to compare there must be two run folders or more")
    paths = [Path(os.fspath(folder)) for folder in folders]
    seen: dict[Path, Path] = {}
    for path in paths:
        if (first := seen.setdefault(path.resolve(), path)) is not path:
            raise ConfigError(f"{path} is given twice" + (f", once as {first}" if path != first else ""))
    names = [path.resolve().name for path in paths]
    runs = tuple(
        read_run(path, label=name if names.count(name) == 1 else os.fspath(path))
        for path, name in zip(paths, names, strict=True)
    )
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_but_for_the_seed(run.config), []).append(run)
    together = [Group(tuple(sorted(group, key=lambda run: run.config.seed))) for group in groups.values()]
    return Compared(runs, tuple(together), differences([run.config for run in runs]))


def read_run(folder: str | os.PathLike[str], *, label: str | None = None) -> Run:
    """Read a run folder as it stands.

    Raises: CheckpointError if it is none, or a file in it is damaged; ConfigError for a setting that does not
    fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file; give the folder of the run" if os.path.lexists(folder) else "does not exist"
        raise CheckpointError(f"{folder} {what}")
    config = continuing.read_config(folder)
    has_summary = os.path.lexists(folder / continuing.SUMMARY)
    return Run(
        os.fspath(folder), label or folder.resolve().name, config, _rows(folder / continuing.METRICS),
        run_folder.read_json(folder / continuing.SUMMARY) if has_summary else None,
        continuing.finished(folder) is not None,
    )  # fmt: skip


def _rows(path: Path) -> tuple[Row, ...]:
    """The epochs in a metrics.csv; none where there is none yet. A figure that was not measured is None."""
    if not os.path.lexists(path):
        return ()
    if (size := regular_file(path, CheckpointError)) > run_folder.LONGEST_JSON:
        raise CheckpointError(f"{path}: {size:,} bytes; no run writes over {run_folder.LONGEST_JSON:,}")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {why(error)}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no table of a run: {error}") from error
    table = csv.DictReader(io.StringIO(text))
    if missing := {"epoch", "train_loss", "train_accuracy"} - {*(table.fieldnames or ())}:
        raise CheckpointError(f"{path} is no table of a run: it has no column {min(missing)}")
    try:
        rows = list(table)
        found = tuple({name: _number(row.get(name)) for name in run_folder.COLUMNS} for row in rows)
    except (ValueError, csv.Error) as error:
        raise CheckpointError(f"{path} is damaged in line {table.line_num}: {error}") from error
    for number, row in enumerate(found, 2):
        if row["epoch"] is None or row["train_loss"] is None or row["train_accuracy"] is None:
            raise CheckpointError(f"{path} is damaged in line {number}: it is not whole")
    return found


def _number(field: str | None) -> float | None:
    return float(field) if field else None


def spread(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """The mean of the values that there are, and their standard deviation (of a sample); of one value there
    is no deviation, and of none no mean.

    >>> spread([0.5, None, 0.75]), spread([0.5]), spread([None])
    ((0.625, 0.1767766952966369), (0.5, None), None)
    """
    there = [value for value in values if value is not None]
    if not there:
        return None
    return statistics.fmean(there), statistics.stdev(there) if len(there) > 1 else None


def differences(configs: Sequence[Config]) -> dict[str, tuple[Any, ...]]:
    """The settings that are not the same in all configurations, each with its value in each; what stands in
    a dict has a name of its own, and None where it is not there.

    >>> differences([Config.of("default", seed=1), Config.of("default", seed=2)])
    {'seed': (1, 2)}
    """
    flat = [_flat(config.to_dict()) for config in configs]
    names = dict.fromkeys(name for one in flat for name in one)
    found = {name: tuple(one.get(name) for one in flat) for name in names}
    return {name: values for name, values in found.items() if any(one != values[0] for one in values)}


def _flat(content: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found


def _but_for_the_seed(config: Config) -> str:
    kept = {name: value for name, value in config.to_dict().items() if name not in ("seed", *FREE)}
    return json.dumps(kept, sort_keys=True)
