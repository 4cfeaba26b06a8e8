"""Event files for TensorBoard: what metrics.csv says, each epoch once, and no bit of the run another."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys

import pytest
from train.small_run import CONFIG, small_model, small_splits

from minires import cli
from minires.errors import ConfigError
from minires.train import Config, TensorBoard, Trainer, tensorboard
from minires.train.checkpoint import Checkpoints
from minires.train.observers import Observer
from minires.train.tensorboard import FOLDER, TAGS, was_written, written

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None, reason="needs tensorboardX"
)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    for name in ("draw_curves", "draw_mistakes"):
        monkeypatch.setattr(f"minires.train.run_folder.{name}", lambda *_, **__: None)


def trainer(out, *observers, said=None, resume=False, **changes):
    config = Config.from_dict({**CONFIG.to_dict(), **changes})
    say = (lambda line: None) if said is None else said.append
    return Trainer(
        config, out, splits=small_splits(), model=small_model(), progress=False, say=say, resume=resume,
        observers=observers,
    )  # fmt: skip


def events(path):
    """The events in a file of records: length, its checksum, content, its checksum."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        assert struct.unpack("<I", content[8:12])[0] == masked_crc32c(content[:8])
        record, content = content[12 : 12 + length], content[12 + length :]
        assert struct.unpack("<I", content[:4])[0] == masked_crc32c(record)
        content = content[4:]
        found.append(Event.FromString(record))
    return found


def scalars(run):
    """What the one event file of a run has: {tag: [(step, value), ...]}."""
    (path,) = (run / FOLDER).iterdir()
    found = {}
    for event in events(path):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def expected(history):
    return {
        tag: [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in history]
        for name, tag in TAGS.items()
    }


@needs_package
def test_each_epoch_is_there_once_with_what_metrics_csv_says_and_the_test_at_the_end(tmp_path):
    one = trainer(tmp_path / "run", TensorBoard())
    summary = one.run()
    wanted = expected(one.history) | {
        f"{name}/test": [(3, pytest.approx(summary[f"test_{name}"], rel=1e-6))]
        for name in ("loss", "accuracy")
    }
    assert scalars(tmp_path / "run") == wanted
    (path,) = written(tmp_path / "run" / FOLDER)
    images = [value for event in events(path) for value in event.summary.value if value.HasField("image")]
    assert [image.tag for image in images] == ["confusion"]  # the others were not drawn here
    picture = (tmp_path / "run" / "confusion.png").read_bytes()
    assert images[0].image.encoded_image_string == picture and images[0].image.width > 300
    times = [event.wall_time for event in events(path)]
    assert times == sorted(times)


@needs_package
def test_real_tensorboard_reads_the_same(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    one = trainer(tmp_path / "run", TensorBoard())
    one.run()
    read = accumulator.EventAccumulator(str(tmp_path / "run" / FOLDER)).Reload()
    for tag, values in expected(one.history).items():
        assert [(event.step, event.value) for event in read.Scalars(tag)] == values


class StopAfter(Observer):
    """Asks for the end of the run, as Ctrl-C does, after a step."""

    def __init__(self, step):
        self.step = step

    def stepped(self, run):
        if run.progress.step == self.step:
            signal.raise_signal(signal.SIGINT)


@needs_package
@pytest.mark.parametrize("step", [5, 12, 17, 30])
def test_a_run_that_was_stopped_and_goes_on_has_no_epoch_twice_and_the_same_bits(step, tmp_path):
    alone = trainer(tmp_path / "alone")
    alone.run()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", TensorBoard(), StopAfter(step)).run()
    assert was_written(tmp_path / "run") is (step > 12)
    again = trainer(tmp_path / "run", TensorBoard(), resume=True)
    again.run()
    assert {tag: values for tag, values in scalars(tmp_path / "run").items() if tag in TAGS.values()} == (
        expected(again.history)
    )
    model = "model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (tmp_path / "alone" / model).read_bytes()
    assert again.config.to_dict() == alone.config.to_dict()


@needs_package
def test_epochs_that_were_written_and_are_to_be_run_again_are_there_once(tmp_path):
    """A checkpoint that is damaged sets the run back behind what the event file has."""
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", TensorBoard(), StopAfter(25)).run()
    (path,) = (tmp_path / "run" / FOLDER).iterdir()
    path.write_bytes(path.read_bytes()[:-7])  # and it was killed while it wrote
    checkpoints = Checkpoints(tmp_path / "run").paths()
    checkpoints[-1].write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="using the checkpoint before it"):
        again = trainer(tmp_path / "run", TensorBoard(), resume=True)
    again.run()
    assert len(again.history) == 3
    assert scalars(tmp_path / "run")["loss/train"] == expected(again.history)["loss/train"]
    again.run()  # tested once more
    assert scalars(tmp_path / "run")["loss/train"] == expected(again.history)["loss/train"]
    assert len(scalars(tmp_path / "run")["loss/test"]) == 1


@needs_package
def test_files_of_others_beside_ours_stay(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", TensorBoard(), StopAfter(17)).run()
    other = tmp_path / "run" / FOLDER / "events.out.tfevents.1.other"
    other.write_bytes(b"theirs")
    trainer(tmp_path / "run", TensorBoard(), resume=True).run()
    assert other.read_bytes() == b"theirs" and len(written(tmp_path / "run" / FOLDER)) == 1


@needs_package
def test_a_full_disk_costs_the_event_file_and_not_the_run(tmp_path, monkeypatch):
    from tensorboardX.record_writer import RecordWriter

    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "flush", full)
    said = []
    summary = trainer(tmp_path / "run", TensorBoard(), said=said).run()
    assert summary["test_accuracy"] is not None
    (line,) = [line for line in said if "TensorBoard" in line]
    assert "is left out from here on: OSError: [Errno 28] No space left on device" in line


def test_a_missing_package_is_said_before_the_run_begins(tmp_path, monkeypatch, capsys):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        tensorboard.importlib.util, "find_spec",
        lambda name, *more: None if name == "tensorboardX" else there(name, *more),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="which is missing: pip install tensorboardX"):
        TensorBoard()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--data", "hands", "--tensorboard", "--out", "run"]) == 2
    said = capsys.readouterr()
    assert "pip install tensorboardX" in said.err and said.out == "" and not (tmp_path / "run").exists()


OWN = """
from minires import models, nn

@models.register("tiny", size=8, classes=6)
class Tiny(nn.Module):
    def __init__(self, *, classes, rng):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, rng=rng)
        self.pool = nn.GlobalAvgPool2d()
        self.fc = nn.Linear(4, classes, rng=rng)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x)))
"""


@needs_package
def test_the_command_writes_them_where_it_is_asked_and_goes_on_to_where_it_did(tmp_path):
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("dark", "light"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(10):
            picture = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "pictures" / name / f"{number}.png")
    (tmp_path / "of_mine.py").write_text(OWN)
    minires = [sys.executable, "-m", "minires", "--import", "of_mine", "train"]

    def call(*more):
        environment = {**os.environ, "MINIRES_THREADS": "1"}
        done = subprocess.run(
            [*minires, *more, "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    start = ("--data", "pictures", "--model", "tiny", "--epochs", "2", "--batch-size", "4", "--keep", "all")
    call(*start, "--out", "without")
    assert not (tmp_path / "without" / FOLDER).exists()
    call(*start, "--out", "with", "--tensorboard")
    first = scalars(tmp_path / "with")
    assert len(first["loss/train"]) == 2 and "tensorboard" not in (tmp_path / "with/config.json").read_text()
    for run in ("with", "without"):
        (tmp_path / run / "summary.json").unlink()  # as if it had been killed before its end
    call("--resume", "with")
    assert scalars(tmp_path / "with") == first
    call("--resume", "without", "--tensorboard")
    assert scalars(tmp_path / "without")["loss/train"] == first["loss/train"]
    (tmp_path / "with" / "summary.json").unlink()
    (before,) = (tmp_path / "with" / FOLDER).iterdir()
    content = before.read_bytes()
    call("--resume", "with", "--no-tensorboard")
    assert before.read_bytes() == content
