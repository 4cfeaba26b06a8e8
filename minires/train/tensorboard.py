"""Event files for TensorBoard, in the folder ``tensorboard`` of a run: an observer that writes them.

They hold, by epoch, what metrics.csv holds, and at the end the test figures and the pictures of the run. They
are written by the package tensorboardX, which needs neither TensorFlow nor PyTorch; its file is written
directly, and not through its queue and thread, so that a full disk is an error here and no run that waits.
"""

from __future__ import annotations

import importlib.util
import operator
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from minires.errors import ConfigError
from minires.train.continuing import PICTURES
from minires.train.evaluation import Evaluation
from minires.train.observers import Observer, Run

FOLDER = "tensorboard"
ENDING = ".minires"  # of the names of our files
# What a column of metrics.csv is called there: those before the stroke stand in one chart beside each other.
TAGS = {
    "train_loss": "loss/train", "val_loss": "loss/validation",
    "train_accuracy": "accuracy/train", "val_accuracy": "accuracy/validation",
    "lr": "optimizer/learning_rate", "gradient_norm": "optimizer/gradient_norm",
    "pictures_per_second": "speed/pictures_per_second",
}  # fmt: skip
TESTED = {"test_loss": "loss/test", "test_accuracy": "accuracy/test"}


class TensorBoard(Observer):
    """Writes what TensorBoard shows: loss, accuracy, learning rate, norm of the gradient and pictures per
    second after each epoch, and at the end the test and the pictures of the run.

    A run that goes on begins its file anew, with the epochs that it has behind it: none is there twice, and
    none is missing.

    Raises: ConfigError, before the run begins, if the package tensorboardX is not installed.
    """

    def __init__(self) -> None:
        if why := missing():
            raise ConfigError(why)
        self._file: Any = None

    def begins(self, run: Run) -> None:
        self._close()
        if run.history:
            self._begin_file(run)

    def epoch_ended(self, run: Run, row: Mapping[str, Any], val: Evaluation | None) -> None:
        if self._file is None:
            self._begin_file(run)  # with this epoch, which is in the history
        else:
            self._write(_epoch(row), step=row["epoch"])
        self._file.flush()

    def ends(self, run: Run, summary: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        step = len(run.history)
        self._write({tag: summary.get(name) for name, tag in TESTED.items()}, step=step)
        if summary.get("test_accuracy") is not None:
            for name in PICTURES:
                with suppress(FileNotFoundError):  # one that could not be drawn
                    self._write_picture(Path(name).stem, run.out / name, step=step)
        self._close()

    def _begin_file(self, run: Run) -> None:
        """A file with all epochs so far, in the place of those that are there.

        When each epoch ended is reckoned from how long those after it took.
        """
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = run.out / FOLDER
        folder.mkdir(exist_ok=True)
        earlier = written(folder)
        number = len(earlier) + 1  # two files of one second must not have one name
        while any(path.name.endswith(f".{number}{ENDING}") for path in earlier):
            number += 1
        self._file = EventsWriter(os.fspath(folder / "events"), f".{number}{ENDING}")
        # Who looks on meanwhile forgets what an earlier file had.
        start = SessionLog(status=SessionLog.START)
        times = _times(run.history, time.time())
        self._file.write_event(Event(wall_time=min(times), step=0, session_log=start))
        for row, ended in zip(run.history, times, strict=True):
            self._write(_epoch(row), step=row["epoch"], wall_time=ended)
        self._file.flush()
        for path in earlier:
            path.unlink(missing_ok=True)

    def _write(
        self, values: Mapping[str, float | None], *, step: int, wall_time: float | None = None
    ) -> None:
        """The values that there are, by their tags."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        shown = [
            Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if value is not None
        ]
        wall_time = time.time() if wall_time is None else wall_time
        self._file.write_event(Event(wall_time=wall_time, step=step, summary=Summary(value=shown)))

    def _write_picture(self, tag: str, path: Path, *, step: int) -> None:
        from PIL import Image
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        content = path.read_bytes()
        with Image.open(path) as picture:
            width, height = picture.size
            colours = len(picture.getbands())
        image = Summary.Image(
            height=height, width=width, colorspace=colours, encoded_image_string=content
        )
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._file.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def missing() -> str:
    """That the package is not installed, with the command that installs it; "" where it is."""
    if importlib.util.find_spec("tensorboardX") is not None:
        return ""
    return "files for TensorBoard are written by tensorboardX, which is missing: pip install tensorboardX"


def written(folder: Path) -> list[Path]:
    """The event files in a folder that are ours; others may lie beside them."""
    return sorted(folder.glob(f"events.out.tfevents.*{ENDING}"))


def was_written(run: str | os.PathLike[str]) -> bool:
    """Whether the run in a folder has been writing event files."""
    return bool(written(Path(run) / FOLDER))


def _epoch(row: Mapping[str, Any]) -> dict[str, float | None]:
    return {tag: row[name] for name, tag in TAGS.items()}


def _times(rows: Sequence[Mapping[str, Any]], now: float) -> list[float]:
    """When each epoch ended, the last of them now."""
    took = (float(row["seconds"]) for row in reversed(rows[1:]))
    return [*accumulate(took, operator.sub, initial=now)][::-1]
