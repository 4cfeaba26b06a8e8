"""What the files of a run say now, as plain data for JSON; nothing is written, and nobody is held up.

A file that is missing, damaged or half written is left out, and it is said which: the page goes on with the
others.
"""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from minires.errors import CheckpointError, ConfigError, MiniresError
from minires.files import check_name
from minires.limits import regular_file
from minires.train import continuing, lock, run_folder, watch_file, watched
from minires.train.checkpoint import Checkpoints
from minires.train.fields import Kind, shortened

LARGEST = 64 * 2**20  # bytes of samples.png
READ = (
    continuing.CONFIG, continuing.METRICS, continuing.SUMMARY, continuing.WATCH, continuing.PROGRESS,
    continuing.SAMPLES,
)  # fmt: skip
SHOWN = ("model", "data", "recipe", "epochs", "batch_size", "seed", "watch")


class Reading:
    """The run in a folder, as its files are when it is asked.

    Raises: CheckpointError if there is no run in it.
    """

    def __init__(self, run: str | os.PathLike[str]) -> None:
        if not isinstance(run, str | os.PathLike):
            raise ConfigError(f"a run is watched in its folder; give its path, not {run!r}")
        check_name(run, CheckpointError)
        self.given, self.folder = str(run), Path(run).absolute()
        if not self.folder.is_dir():
            is_there = "is a file: give the folder of its run" if self.folder.exists() else "does not exist"
            raise CheckpointError(f"{run} {is_there}")
        if not self._is_run():
            raise CheckpointError(
                f"there is no run in {run}: it has neither config.json nor metrics.csv; give a run folder"
            )
        self._kept: tuple[Any, dict[str, Any]] | None = None

    def _is_run(self) -> bool:
        names = (continuing.CONFIG, continuing.METRICS, continuing.SUMMARY)
        return any((self.folder / name).is_file() for name in names) or bool(Checkpoints(self.folder).paths())

    def now(self) -> dict[str, Any]:
        """All that is to be shown; ``version`` is another one whenever something has changed.

        ``state`` is "running", "stopped", "finished" or "gone" (the folder is no more there).
        """
        who = lock.holder(self.folder)
        version = [who, *(_stamp(self.folder / name) for name in READ)]
        if self._kept is None or self._kept[0] != version:
            self._kept = version, self._read(who, version)
        return self._kept[1]

    def samples(self) -> bytes:
        """The PNG of the sample pictures. Raises: CheckpointError if there is none, or it is none."""
        path = self.folder / continuing.SAMPLES
        try:
            if regular_file(path, CheckpointError) > LARGEST:
                raise CheckpointError(f"{path} is no picture of ours: it is too large")
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        if not content.startswith(b"\x89PNG"):
            raise CheckpointError(f"{path} is no PNG")
        return content

    def _read(self, who: str | None, version: Any) -> dict[str, Any]:
        broken: list[str] = []
        config = self._json(continuing.CONFIG, None, broken) or {}
        summary = self._json(continuing.SUMMARY, None, broken)
        inside = self._json(continuing.WATCH, watch_file.KIND, broken)
        progress = self._json(continuing.PROGRESS, watched.PROGRESS_KIND, broken)
        finished = summary is not None and _number(summary.get("test_accuracy")) is not None
        there = self.folder.is_dir()
        return {
            "version": str(abs(hash(str(version)))),
            "run": self.given,
            "state": "running" if who else "finished" if finished else "stopped" if there else "gone",
            "who": who,
            "config": {name: config[name] for name in SHOWN if name in config},
            "metrics": self._metrics(broken),
            "summary": _plain(summary),
            "inside": inside,
            "progress": progress,
            "samples": inside["samples"] if inside and (self.folder / continuing.SAMPLES).is_file() else None,
            "broken": broken,
        }

    def _json(self, name: str, kind: Kind | None, broken: list[str]) -> dict[str, Any] | None:
        path = self.folder / name
        if not os.path.lexists(path):
            return None
        try:
            content = run_folder.read_json(path)
            if kind is not None:
                kind("", content)
            return content
        except MiniresError as error:
            text = shortened(error, most=300)
            broken.append(text if name in text else f"{name}: {text}")
            return None

    def _metrics(self, broken: list[str]) -> list[dict[str, float | None]]:
        """The rows of metrics.csv, up to the first that is none."""
        path, rows = self.folder / continuing.METRICS, []
        if not os.path.lexists(path):
            return []
        try:
            if regular_file(path, CheckpointError) > run_folder.LONGEST_JSON:
                raise CheckpointError(f"{path} is too large")
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            broken.append(f"{continuing.METRICS}: {shortened(error, most=300)}")
            return []
        try:
            table = csv.DictReader(io.StringIO(text, newline=""))
            if text and not {"epoch", "step"} <= set(table.fieldnames or ()):
                raise ValueError("no line of names")
            for row in table:
                rows.append({name: _figure(row.get(name, "")) for name in run_folder.COLUMNS})
                if rows[-1]["epoch"] is None or rows[-1]["step"] is None:
                    raise ValueError("a row without epoch")
        except (csv.Error, KeyError, TypeError, ValueError):
            broken.append(f"{continuing.METRICS}: its lines after epoch {len(rows)} are damaged")
            rows = [row for row in rows if row["epoch"] is not None and row["step"] is not None]
        return rows


def seconds_left(content: Mapping[str, Any]) -> float | None:
    """How long a run that goes may still take, as it said last, less what has passed since."""
    progress = content["progress"]
    if content["state"] != "running" or progress is None or progress["left"] is None:
        return None
    said: float = progress["left"]
    passed: float = time.time() - progress["time"]
    return max(0.0, said - max(0.0, passed))


def _stamp(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_size
    return None


def _figure(text: str) -> float | None:
    """A field of metrics.csv; an empty one was not measured. Raises: ValueError if it is no number."""
    if text == "":
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _plain(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What is shown of summary.json, whatever somebody has made of it."""
    if summary is None:
        return None
    numbers = ("test_accuracy", "test_loss", "test_pictures", "seconds", "parameters")
    warnings = summary.get("warnings")
    texts = [one for one in warnings if isinstance(one, str)] if isinstance(warnings, list) else []
    return {
        **{name: _number(summary.get(name)) for name in numbers}, "warnings": texts,
        "diverged": summary.get("diverged") is True,
    }  # fmt: skip
