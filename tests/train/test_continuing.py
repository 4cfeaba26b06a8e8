"""Which folders a run begins in, which it goes on in, and that nothing in them is ever overwritten."""

from __future__ import annotations

import json
import os
import shutil
import signal
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits, stripes

from minires.data import Splits
from minires.errors import CheckpointError, ConfigError, MiniresError
from minires.train import Config, Interrupted, Trainer, checkpoint, continuing, load_model
from minires.train.checkpoint import Checkpoints
from minires.train.lock import Held


def trainer(out, *, splits=None, resume=False, say=lambda line: None, **changes):
    config = Config.from_dict({**CONFIG.to_dict(), **changes})
    return Trainer(
        config, out, splits=splits or small_splits(), model=small_model(), resume=resume, progress=False,
        say=say,
    )  # fmt: skip

pytestmark = pytest.mark.usefixtures("no_figures")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped after step 11, with checkpoints of steps 5 and 10."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    run = trainer(out)
    step = run._step

    def limited(x, y):
        if run.progress.step == 11:
            raise KeyboardInterrupt
        step(x, y)

    run._step = limited
    with pytest.raises(KeyboardInterrupt, match="00000010.safetensors is kept"):
        run.run()
    return out


@pytest.fixture
def run(stopped, tmp_path):
    return Path(shutil.copytree(stopped, tmp_path / "run"))


NEWEST, BEFORE = "checkpoint-00000010.safetensors", "checkpoint-00000005.safetensors"
WRONG = [None, True, -1, 1.5, "text", [1], {"a": 1}]


def changed(path, change):
    """Write a checkpoint again with other contents and the checksum that belongs to them."""
    arrays, info = checkpoint.read(path)
    change(arrays, info)
    info.pop("format", None)
    checkpoint.write(path, arrays, info)


def raw(path, text):
    """Write a checkpoint again with these bytes as its metadata."""
    from safetensors.numpy import load_file, save_file

    save_file(load_file(path), path, {"minires": text})


def fields(info, place=()):
    """All places in an info but those of free form."""
    for name, value in info.items():
        yield (*place, name)
        if name == "progress":
            yield from fields(value, (*place, name))


def test_whatever_is_wrong_in_what_a_checkpoint_says_the_one_before_it_is_used(run):
    whole = contents(run)
    _, info = checkpoint.read(run / NEWEST)
    tried = 0
    for place in fields(info):
        for wrong in ["missing", *WRONG]:
            (run / NEWEST).write_bytes(whole[NEWEST])

            def change(arrays, info, place=place, wrong=wrong):
                for name in place[:-1]:
                    info = info[name]
                if wrong == "missing":
                    del info[place[-1]]
                else:
                    info[place[-1]] = wrong

            changed(run / NEWEST, change)
            with warnings.catch_warnings(action="ignore"):
                try:
                    found = trainer(run, resume=True)
                except MiniresError as error:
                    # What differs from the run's own settings or data is another run's, and stays.
                    assert place[0] in ("config", "data", "format", "kind"), (place, wrong, error)
                    assert (run / NEWEST).exists()
                    continue
            moved = run / f"{NEWEST}.damaged"
            assert found.progress.step == (5 if moved.exists() else 10), (place, wrong)
            if not moved.exists():  # what may be as well
                assert place[-1] in ("format", "warnings", "trained", "threads", "ranks", "loss", "norm",
                                     "seconds", "epoch_seconds", "pictures", "right",
                                     "history"), place  # fmt: skip
            moved.unlink(missing_ok=True)
            del found
            tried += 1
    assert tried > 100


DAMAGE = {
    "a changed byte of the metadata": lambda path: path.write_bytes(
        path.read_bytes().replace(b"checkpoint", b"checkpoinu", 1)
    ),
    "nested deeply": lambda path: raw(path, "[" * 100_000 + "]" * 100_000),
    "NaN": lambda path: raw(path, '{"sha256": "x", "loss": NaN}'),
    "not JSON": lambda path: raw(path, "{"),
    "no object": lambda path: raw(path, "[1]"),
    "a long number": lambda path: raw(path, '{"sha256": %s}' % ("9" * 5000)),
    "a lone surrogate": lambda path: raw(path, '{"sha256": "x", "kind": "\\ud800"}'),
    "no UTF-8": lambda path: path.write_bytes(path.read_bytes().replace(b"checkpoint", b"checkpoin\xff", 1)),
    "empty": lambda path: path.write_bytes(b""),
    "a huge header": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "an array is missing": lambda path: changed(path, lambda arrays, info: arrays.pop("model/fc.bias")),
    "an array too many": lambda path: changed(path, lambda a, info: a.update({"model/x": np.zeros(2)})),
    "another shape": lambda path: changed(path, lambda a, info: a.update({"model/fc.bias": np.zeros(9)})),
    "no state of the optimiser": lambda path: changed(
        path, lambda a, info: [a.pop(name) for name in list(a) if name.startswith("optimizer")]
    ),
    "steps that are no numbers": lambda path: changed(
        path, lambda a, info: a.update({"optimizer/steps": a["optimizer/steps"] * np.nan})
    ),
    "no averages": lambda path: changed(
        path, lambda a, info: [a.pop(name) for name in list(a) if name.startswith("ema")]
    ),
    "another random state": lambda path: changed(
        path, lambda a, info: info["random"].update({name: {"state": []} for name in info["random"]})
    ),
    "no plateau": lambda path: changed(path, lambda a, info: info.update(schedule={"best": "low"})),
    "a history without losses": lambda path: changed(
        path, lambda a, info: info.update(history=[{"epoch": 1}])
    ),
    "a place that cannot be": lambda path: changed(path, lambda a, info: info["progress"].update(batch=99)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(kind, run):
    DAMAGE[kind](run / NEWEST)
    with pytest.warns(UserWarning, match=f"(?s){NEWEST} .*; using the checkpoint before it"):
        assert trainer(run, resume=True).progress.step == 5
    assert os.path.lexists(run / f"{NEWEST}.damaged") and not (run / NEWEST).exists()


@pytest.mark.parametrize("kind", DAMAGE)
def test_where_all_are_damaged_it_is_said_each_time_and_nothing_changes(kind, run):
    for name in (NEWEST, BEFORE):
        DAMAGE[kind](run / name)
    (run / "model.safetensors").write_bytes(b"a model of mine")
    before = sorted(run.iterdir())
    for _ in range(2):
        with pytest.raises(CheckpointError, match="damaged, and nothing was changed|is of another model"):
            trainer(run, resume=True)
        with pytest.raises(ConfigError, match="holds a run already"):
            trainer(run)
    assert sorted(run.iterdir()) == before
    assert (run / "model.safetensors").read_bytes() == b"a model of mine"


def test_a_run_without_a_checkpoint_is_not_started_over(run):
    for name in (NEWEST, BEFORE):
        (run / name).rename(run / f"{name}.damaged")
    before = contents(run)
    with pytest.raises(CheckpointError, match="no checkpoint but a damaged one .checkpoint-00000010"):
        trainer(run, resume=True)
    for name in (NEWEST, BEFORE):
        (run / f"{name}.damaged").unlink()
        before.pop(f"{name}.damaged")
    (run / "metrics.csv").write_text("epoch\n1\n")
    with pytest.raises(CheckpointError, match="no checkpoint to go on from, only metrics.csv"):
        trainer(run, resume=True)
    with pytest.raises(ConfigError, match="a run already .config.json, metrics.csv, .*; choose another"):
        trainer(run)
    assert contents(run) == {**before, "metrics.csv": b"epoch\n1\n"}
    # Only its configuration: it was killed before its first checkpoint, and begins.
    (run / "metrics.csv").unlink()
    assert trainer(run, resume=True).progress.step == 0
    assert (run / "config.json").exists()


@pytest.mark.parametrize("name", ["curves.png", "confusion.png", "mistakes.png"])
def test_a_picture_of_the_users_with_the_name_of_a_runs_stays(name, tmp_path):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ConfigError, match=f"holds pictures .*already .{name}.; choose another folder"):
        trainer(tmp_path)
    assert contents(tmp_path) == {name: b"mine"}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))  # a run that never came so far
    with pytest.raises(CheckpointError, match=f"no checkpoint to go on from, only {name}"):
        trainer(tmp_path, resume=True)
    with pytest.raises(ConfigError, match=f"holds a run already .config.json, {name}.; choose another"):
        trainer(tmp_path)
    assert (tmp_path / name).read_bytes() == b"mine"


def test_no_run_begins_beside_damaged_checkpoints(tmp_path):
    (tmp_path / f"{NEWEST}.damaged").write_bytes(b"what is left of it")
    with pytest.raises(ConfigError, match="holds a run already .*damaged.; choose another folder"):
        trainer(tmp_path)
    assert contents(tmp_path) == {f"{NEWEST}.damaged": b"what is left of it"}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_trainer_does_not_run_again_over_a_file_that_somebody_else_has_written(name, tmp_path):
    run = trainer(tmp_path / "run", epochs=1)
    run.run()
    path = tmp_path / "run" / name
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))  # with as many bytes
    with pytest.raises(MiniresError, match="trained there meanwhile, or changed something"):
        run.run()


@pytest.mark.parametrize("summary", [{}, {"test_accuracy": None}])
def test_a_run_whose_summary_has_no_test_is_not_finished(summary, run):
    (run / "model.safetensors").write_bytes(b"half of it")
    (run / "summary.json").write_text(json.dumps(summary))
    assert continuing.finished(run) is None
    assert trainer(run, resume=True).progress.step == 10


def test_a_file_of_a_run_is_none_to_write_and_others_are(run, tmp_path):
    names = ["model.safetensors", "Model.safetensors", "metrics.csv", "summary.json", "curves.png", NEWEST,
             "checkpoint-00000099.safetensors", f"{NEWEST}.damaged"]  # fmt: skip
    for name in names:
        with pytest.raises(ConfigError, match="is a file of the run in .*run: out must be another file"):
            continuing.not_in_run("out", run / name)
        continuing.not_in_run("out", tmp_path / name)
    continuing.not_in_run("out", run / "theirs.safetensors")
    config = run / "config.json"
    config.rename(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="is a file of the run"):  # of which its checkpoints are left
        continuing.not_in_run("out", run / "model.safetensors")
    for name in (NEWEST, BEFORE):
        (run / name).unlink()
    (run / "model.safetensors").write_bytes(b"")
    continuing.not_in_run("out", run / "model.safetensors")
    (run / "summary.json").write_text('{"test_accuracy": 1}')
    with pytest.raises(ConfigError, match="is a file of the run"):
        continuing.not_in_run("out", run / "model.safetensors")
    (run / "summary.json").unlink()
    (tmp_path / "config.json").rename(config)  # it has only begun
    with pytest.raises(ConfigError, match="is a file of the run"):
        continuing.not_in_run("out", run / "model.safetensors")
    config.write_text('{"architectures": ["ResNetForImageClassification"]}')
    continuing.not_in_run("out", run / "model.safetensors")


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_damaged(run, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(CheckpointError, match=f"cannot read .*{NEWEST}: Permission denied"):
        Checkpoints(run).latest(lambda *_: None)
    monkeypatch.undo()
    assert (run / NEWEST).exists()


@pytest.mark.parametrize(
    ("part", "said"),
    [("val images", "the validation pictures"), ("val labels", "the validation labels"),
     ("test images", "the test pictures"), ("test labels", "the test labels"),
     ("train labels", "the training labels"), ("classes", "the class names")],
)  # fmt: skip
def test_other_pictures_labels_or_class_names_are_named(part, said, run):
    splits = small_splits()
    parts = {name: getattr(splits, name) for name in ("train", "val", "test")}
    if part == "classes":
        parts = {name: replace(one, classes=("lines", *one.classes[1:])) for name, one in parts.items()}
    else:
        name, field = part.split()
        array = getattr(parts[name], field).copy()
        array[0] = 1 + array[0] % 2
        parts[name] = replace(parts[name], **{field: array})
    with pytest.raises(CheckpointError, match=f"made with other data .*; changed: {said}. Make the same"):
        trainer(run, resume=True, splits=Splits(**parts, source="here"))


def test_a_run_killed_before_its_first_checkpoint_begins_on_the_same_data_alone(tmp_path):
    out, said = tmp_path / "run", []
    killed = trainer(out)
    killed._lock.release()  # as the system does for a process that is gone
    assert set(contents(out)) >= {"config.json", "fingerprint.json"}
    with pytest.raises(ConfigError, match=r"holds a run already .config.json, fingerprint.json.; go on with"):
        trainer(out)
    before = contents(out)
    others = Splits(stripes(93, 8), stripes(24, 1), stripes(24, 2), "others")
    with pytest.raises(CheckpointError, match="fingerprint.json was made with other data than others holds"):
        trainer(out, resume=True, splits=others)
    assert contents(out) == before
    assert trainer(out, resume=True, say=said.append, epochs=1).run()["steps"] == 12
    assert said[0] == "there is no checkpoint yet: the run begins with its first step"
    assert "fingerprint.json" not in contents(out)  # the checkpoints held it


def test_what_is_not_known_of_the_data_of_a_run_is_known_from_then_on(tmp_path):
    out, others = tmp_path / "run", Splits(stripes(90, 8), stripes(24, 1), stripes(24, 2), "others")
    trainer(out)._lock.release()
    path = out / "fingerprint.json"
    whole = path.read_bytes()
    path.unlink()  # it was killed in between, or is of an older version
    trainer(out, resume=True)._lock.release()
    assert path.read_bytes() == whole
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match="fingerprint.json cannot be read.*not known on which pictures"):
        trainer(out, resume=True)._lock.release()
    assert path.read_bytes() == whole
    with pytest.raises(CheckpointError, match=r"the training pictures \(93 before, 90 now\), the t"):
        trainer(out, resume=True, splits=others)


def test_no_run_begins_among_its_pictures(tmp_path, monkeypatch):
    pictures = tmp_path / "mine"
    (pictures / "red").mkdir(parents=True)
    monkeypatch.chdir(pictures)
    config = replace(CONFIG, data=str(pictures), model="resnet20_cifar")
    for out in (pictures, pictures / "red", pictures / "runs/new", "runs/new"):
        with pytest.raises(ConfigError, match="is inside that of the pictures, .*: out='.*runs.mine'"):
            Trainer(config, out)
    assert [path.name for path in pictures.rglob("*")] == ["red"]


def test_a_configuration_that_cannot_be_read_is_refused_with_the_way_on(run):
    (run / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json cannot be read: .*; remove it, and the run has"):
        continuing.read_config(run)
    (run / "config.json").unlink()
    with pytest.warns(UserWarning, match="using the configuration in"):
        assert continuing.read_config(run) == CONFIG


def test_a_file_of_the_users_with_the_name_of_the_fingerprint_stays(tmp_path):
    (tmp_path / "fingerprint.json").write_text("mine")
    with pytest.raises(ConfigError, match="holds a run already .fingerprint.json.; choose another folder"):
        trainer(tmp_path)
    assert contents(tmp_path) == {"fingerprint.json": b"mine"}


def test_a_checkpoint_of_the_version_before_goes_on(run):
    import hashlib

    train = small_splits().train
    digest = hashlib.sha256(train.images.tobytes() + train.labels.tobytes()).hexdigest()

    def older(arrays, info):
        info["data"] = digest
        del info["config"]["keep"], info["warnings"]

    changed(run / NEWEST, older)
    assert trainer(run, resume=True).progress.step == 10
    others = Splits(stripes(93, 8), stripes(24, 1), stripes(24, 2), "others")
    with pytest.raises(CheckpointError, match="changed: the training pictures or their labels"):
        trainer(run, resume=True, splits=others)


def test_a_run_of_a_version_without_some_settings_goes_on_as_they_are_by_default(run, tmp_path):
    """Neither its configuration nor its checkpoints say anything of these."""
    new = ("accumulate", "balance", "patience", "recalibrate")
    for path in Checkpoints(run).paths():
        changed(path, lambda arrays, info: [info["config"].pop(name) for name in new])
    older = json.loads((run / "config.json").read_text())
    for name in new:
        del older[name]
    (run / "config.json").write_text(json.dumps(older))
    with pytest.raises(CheckpointError, match="another run: balance is 'none' there and 'weights'"):
        trainer(run, resume=True, balance="weights")
    data, model = small_splits(), small_model()
    again = Trainer(None, run, splits=data, model=model, resume=True, progress=False, say=lambda line: None)
    assert again.progress.step == 10 and again.config == CONFIG
    again.run()
    trainer(tmp_path / "whole").run()
    assert (run / continuing.MODEL).read_bytes() == (tmp_path / "whole" / continuing.MODEL).read_bytes()


def test_checkpoints_stay_or_go_when_the_run_is_finished(tmp_path):
    for keep, steps in (("none", []), ("last", [10, 12]), ("all", [5, 10, 12])):
        trainer(tmp_path / keep, epochs=1, keep=keep).run()
        names = [f"checkpoint-{step:08d}.safetensors" for step in steps]
        assert [path.name for path in Checkpoints(tmp_path / keep).paths()] == names
    before = contents(tmp_path / "none")
    assert set(before) == {
        "config.json", "metrics.csv", "model.safetensors", "summary.json", "watch.json", "progress.json",
        "samples.png", "layers.csv",
    }  # fmt: skip
    with pytest.raises(CheckpointError, match="none is finished: .* its model is .*none/model.safetensors"):
        trainer(tmp_path / "none", epochs=1, resume=True)
    with pytest.raises(ConfigError, match="and it is finished; choose another folder"):
        trainer(tmp_path / "none", epochs=1)
    assert contents(tmp_path / "none") == before
    before = contents(tmp_path / "all")
    for keep in ("none", "all"):  # finished is finished: nothing is removed any more
        with pytest.raises(CheckpointError, match="all is finished: .*; it needs its 3 checkpoints no more"):
            trainer(tmp_path / "all", epochs=1, keep=keep, resume=True)
    assert contents(tmp_path / "all") == before
    with pytest.raises(ConfigError, match="value of keep 'lst'. Did you mean 'last'"):
        Config(keep="lst")


@pytest.mark.parametrize("name", ["model.safetensors", "summary.json"])
def test_a_run_that_cannot_write_its_end_keeps_its_checkpoints_and_ends_later(name, tmp_path, monkeypatch):
    import errno
    import os

    replace = os.replace

    def full(source, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr("minires.files.os.replace", full)
    with pytest.raises(MiniresError, match=f"{name}: No space left.*go on with: minires train --resume"):
        trainer(tmp_path / "run", epochs=1, keep="none").run()
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "run").paths()
    trainer(tmp_path / "run", epochs=1, keep="none", resume=True).run()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"] is not None


@pytest.mark.parametrize("name", ["draw_curves", "draw_confusion", "draw_mistakes", "write_metrics"])
def test_a_figure_that_fails_costs_neither_run_nor_model(name, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(f"minires.train.run_folder.{name}", fail)
    summary = trainer(tmp_path / "run", epochs=1).run()
    assert [
        text for text in summary["warnings"] if text.endswith("could not be made: RuntimeError: no fonts")
    ]
    assert load_model(tmp_path / "run", model=small_model()).name == "small"


def test_what_killed_writes_have_left_is_removed_and_nothing_else(run):
    ours = [f".{NEWEST}.abc_1234.tmp", ".config.json.a1b2c3d4.tmp", ".curves.png.xxxxxxxx.tmp"]
    others = [".notes.txt.abcdefgh.tmp", "mine.tmp", f".{NEWEST}.tmp", ".config.json.mine.tmp"]
    for name in [*ours, *others]:
        (run / name).write_text("x")
    trainer(run, resume=True)
    left = {path.name for path in run.iterdir()}
    assert not left & set(ours) and left >= set(others)


def test_a_run_that_never_began_leaves_nothing(tmp_path):
    from itertools import count

    for fault in (dict(normalize="data", freeze=["nothing"]), dict(precision="tf32")):
        with pytest.raises(MiniresError):
            trainer((tmp_path / "runs" / f"r-{number}" for number in count(1)), **fault)
        assert not (tmp_path / "runs").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    model = small_model()
    model.forward = lambda x: 1 / 0
    run = Trainer(CONFIG, tmp_path / "mine", splits=small_splits(), model=model, progress=False, say=print)
    with pytest.raises(ZeroDivisionError):
        run.run()
    assert contents(tmp_path / "mine") == {"notes.txt": b"mine"}


def test_what_is_kept_stands_in_the_configuration_and_an_older_run_keeps_its_last(run):
    kept = trainer(run, keep="all", resume=True).config.keep
    assert kept == "all" == json.loads((run / "config.json").read_text())["keep"]
    trainer(run, keep=continuing.read_config(run).keep, resume=True).run()
    assert len(Checkpoints(run).paths()) > checkpoint.KEPT
    older = json.loads((run / "config.json").read_text())
    del older["keep"]
    (run / "config.json").write_text(json.dumps(older))
    assert continuing.read_config(run).keep == "last"


@pytest.mark.parametrize("left", [None, b""])
def test_without_a_configuration_that_of_the_newest_good_checkpoint_is_used(left, run):
    config = (run / "config.json").read_bytes()
    (run / "config.json").unlink()
    if left is not None:
        (run / "config.json").write_bytes(left)
    DAMAGE["empty"](run / NEWEST)
    said = f"config.json is missing or empty; using the configuration in .*{BEFORE}"
    with pytest.warns(UserWarning, match=said):
        read = continuing.read_config(run)
    with pytest.warns(UserWarning, match="using the checkpoint before it"):
        assert trainer(run, resume=True, keep=read.keep).progress.step == 5
    assert (run / "config.json").read_bytes() == config


@pytest.mark.skipif(os.name == "nt", reason="named pipes are of POSIX")
def test_what_stands_in_the_place_of_the_configuration_is_not_overlooked(run):
    (run / "config.json").unlink()
    os.mkfifo(run / "config.json")
    with pytest.raises(CheckpointError, match="config.json: this is a pipe, not a file"):
        continuing.read_config(run)


def test_a_folder_that_is_moved_away_gets_no_more_and_another_run_in_its_place_nothing(tmp_path):
    run = trainer(tmp_path / "run")
    step = run._step

    def moved(x, y):
        step(x, y)
        if run.progress.step == 7:
            (tmp_path / "run").rename(tmp_path / "moved")
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "config.json").write_text("another")

    run._step = moved
    said = "run began: another one stands in its place. The run is stopped"
    with pytest.raises(MiniresError, match=said) as lost:
        run.run()
    assert "Mend that" not in str(lost.value)
    assert contents(tmp_path / "run") == {"config.json": b"another"}
    assert trainer(tmp_path / "moved", resume=True).progress.step == 5


def test_where_the_process_goes_meanwhile_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "elsewhere" / "run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    run = trainer("run", epochs=1)
    monkeypatch.chdir("elsewhere")
    run.run()
    assert (tmp_path / "run" / "summary.json").exists() and str(run.given) == "run"
    assert not list((tmp_path / "elsewhere" / "run").iterdir())


def test_a_trainer_that_is_refused_takes_nothing_from_the_one_before(tmp_path):
    first = trainer(tmp_path / "run", epochs=1)
    with pytest.raises(ConfigError, match="holds a run already"):
        trainer(tmp_path / "run", epochs=1)
    with pytest.raises(ConfigError, match="no part"):
        trainer(tmp_path / "run", epochs=1, resume=True, freeze=["nothing"])
    assert first.run()["steps"] == 12


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_trainer_does_not_train_in_the_folder_of_its_parent(tmp_path):
    run = trainer(tmp_path / "run", epochs=1)
    before = contents(tmp_path / "run")
    if (child := os.fork()) == 0:
        status = 1
        try:
            run.run()
        except Held:
            status = 0
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert contents(tmp_path / "run") == before
    assert run.run()["steps"] == 12


def test_a_trainer_that_was_interrupted_goes_on_and_one_whose_step_was_broken_does_not(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.run()
    run = trainer(tmp_path / "run")
    step = run._step

    def stopped(x, y):
        step(x, y)
        if run.progress.step == 7:
            signal.raise_signal(signal.SIGINT)
        if run.progress.step == 20:
            raise ZeroDivisionError

    run._step = stopped
    with pytest.raises(Interrupted, match="stopped after step 7"):
        run.run()
    del run._step
    other = shutil.copytree(tmp_path / "run", tmp_path / "other")
    assert run.run()["steps"] == 36
    name = "model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    run = trainer(other, resume=True)
    run._step = lambda x, y: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run.run()
    with pytest.raises(MiniresError, match="its last step has not come to its end; make a new one"):
        run.run()


def test_a_signal_while_the_configuration_is_written_leaves_nothing(tmp_path, monkeypatch):
    write = continuing.run_folder.write_json

    def stopped(path, content):
        write(path, content)
        raise Interrupted("now")

    monkeypatch.setattr("minires.train.run_folder.write_json", stopped)
    with pytest.raises(Interrupted):
        trainer(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_utf_8_stop_nothing(tmp_path):
    name = os.fsdecode(b"r\xffn")
    splits = small_splits()
    parts = {
        part: replace(getattr(splits, part), classes=(name, "b", "c"), name=name)
        for part in ("train", "val", "test")
    }
    splits, said = Splits(**parts, source=name), []
    run = trainer(tmp_path / name, splits=splits, data=name, epochs=1, keep="all", say=said.append)
    run.run()
    assert said and [line.encode() for line in said]  # whoever prints them can
    assert load_model(tmp_path / name, model=small_model()).classes == (name, "b", "c")
    assert continuing.read_config(tmp_path / name).data == name
    (tmp_path / name / "summary.json").unlink()
    assert trainer(
        tmp_path / name, splits=splits, data=name, epochs=1, keep="all", resume=True
    ).progress.step == 12  # fmt: skip
