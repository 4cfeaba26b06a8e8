"""Runs on streamed pictures: killed, stopped by one that cannot be read, resumed: the same bits."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from train.small_run import STREAMED, small_model, write_pictures
from train.test_resume import assert_same_bits, final_state, finish, start, wait_for_step

from minires import data, train
from minires.data import augment, opening, streaming
from minires.errors import CheckpointError, ConfigError, MiniresError
from minires.train import Trainer, checkpoint, state

STEPS = 36


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("streamed") / "pictures")


def trained(pictures: Path, out: Path, *, resume=False, said=None, figures=False, **changes) -> Trainer:
    config = replace(STREAMED, data=str(pictures), size=12, **changes)
    lines = [] if said is None else said
    return Trainer(
        config, out, model=small_model(), resume=resume, progress=False, say=lines.append, figures=figures
    )


@pytest.mark.parametrize("more", [(), ("--best",)])
def test_killed_while_streaming_and_resumed_gives_the_same_bits(pictures, tmp_path, more):
    whole = tmp_path / "whole"
    code, _, err = finish(start(whole, *more, PICTURES=str(pictures)))
    assert code == 0, err
    out, moments = tmp_path / "run", random.Random(3)
    for step in sorted(moments.sample(range(1, STEPS), 5)):
        resume = ["--resume"] if (out / "config.json").exists() else []
        process = start(out, *resume, *more, PICTURES=str(pictures))
        assert wait_for_step(process, step) >= step
        time.sleep(moments.uniform(0, 0.03))
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
    code, said, err = finish(start(out, "--resume", *more, PICTURES=str(pictures)))
    assert code == 0 and "continuing after step" in said, err
    if not more:
        assert_same_bits(out, final_state(whole))
    ours, expected = (checkpoint.read(run / "model.safetensors")[0] for run in (out, whole))
    assert all(np.array_equal(ours[name], expected[name]) for name in expected)


ENDS = [("train", "last"), ("val", "last"), ("test", "last"), ("test", "best")]


@pytest.mark.parametrize("part, keep", ENDS)
def test_a_run_stops_at_an_unreadable_picture_and_goes_on_when_it_is_mended(tmp_path, part, keep):
    pictures = write_pictures(tmp_path / "pictures")
    trained(pictures, tmp_path / "whole", stream=True, keep=keep).run()
    spoilt = sorted((pictures / part).rglob("*.png"))[7]
    content, out, said = spoilt.read_bytes(), tmp_path / "run", []
    runner = trained(pictures, out, stream=True, said=said, keep=keep)
    spoilt.write_bytes(content[:80])
    with pytest.raises(MiniresError) as error:
        runner.run()
    name = spoilt.relative_to(pictures).as_posix()
    assert f"\n  {name}: cannot read this picture" in str(error.value)
    assert "is kept. Mend that, then go on with: minires train --resume" in str(error.value)
    stopped = checkpoint.read(checkpoint.Checkpoints(out).paths()[-1])[1]
    assert stopped["data"][state.MENDED] == [name] and stopped["progress"]["step"] > 0
    with pytest.raises(MiniresError, match=name):  # not mended yet: nothing is lost
        trained(pictures, out, resume=True, keep=keep).run()
    spoilt.write_bytes(content)
    os.utime(spoilt, ns=(1, 1))
    trained(pictures, out, resume=True, keep=keep).run()
    if keep == "last":
        assert_same_bits(out, final_state(tmp_path / "whole"))
    ours, whole = (checkpoint.read(run / "model.safetensors")[0] for run in (out, tmp_path / "whole"))
    assert all(np.array_equal(ours[name], whole[name]) for name in whole)


def test_a_run_with_other_files_does_not_go_on(tmp_path):
    pictures, out = write_pictures(tmp_path / "pictures"), tmp_path / "run"
    runner = trained(pictures, out, stream=True)
    runner.save()
    one = next((pictures / "val").rglob("*.png"))
    os.utime(one, ns=(5, 5))
    with pytest.raises(CheckpointError, match="made with other data .*changed: the validation pictures"):
        trained(pictures, out, stream=True, resume=True)


def test_a_run_goes_on_as_it_began_streaming_or_not(pictures, tmp_path, monkeypatch):
    assert isinstance(trained(pictures, tmp_path / "held").train_set.images, np.ndarray)
    runner = trained(pictures, tmp_path / "held2")
    runner.save()
    limit = opening.STREAM_FROM
    monkeypatch.setattr(opening, "STREAM_FROM", 1000)
    assert isinstance(trained(pictures, tmp_path / "held2", resume=True).train_set.images, np.ndarray)
    streamed = trained(pictures, tmp_path / "streamed")
    assert isinstance(streamed.train_set.images, data.Stream)
    streamed.save()
    monkeypatch.setattr(opening, "STREAM_FROM", limit)
    again = trained(pictures, tmp_path / "streamed", resume=True)
    assert isinstance(again.train_set.images, data.Stream)
    with pytest.raises(CheckpointError, match="other data"):
        trained(pictures, tmp_path / "streamed", resume=True, stream=False)


def test_the_recipe_asks_for_a_stream_and_memory_is_refused(pictures, tmp_path):
    steps = [["scale_crop", {"shorter": [14, 20]}]]
    runner = trained(pictures, tmp_path / "run", augment=steps)
    assert isinstance(runner.train_set.images, data.Stream)
    with pytest.raises(ConfigError, match="in memory: load them with stream=True .*--stream"):
        trained(pictures, tmp_path / "other", augment=steps, stream=False)
    assert not (tmp_path / "other").exists()


def test_what_is_measured_of_a_stream_is_said_and_kept(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(augment, "MEASURED", 20)
    monkeypatch.setattr("minires.train.report.MEASURED", 20)
    said = []
    runner = trained(pictures, tmp_path / "run", stream=True, said=said, epochs=1)
    chosen = np.sort(np.random.default_rng([0, 0x3EA5]).permutation(93)[:20])
    images = data.load(pictures, size=12).train.images[chosen] / 255
    assert np.allclose(runner.normalize.mean, images.mean(axis=(0, 1, 2)))
    assert np.allclose(runner.normalize.std, images.std(axis=(0, 1, 2)))
    runner.save()
    monkeypatch.setattr(data.Normalize, "of", None)  # and is not measured again
    again = trained(pictures, tmp_path / "run", stream=True, said=said, epochs=1, resume=True)
    assert again.normalize == runner.normalize
    again.run()
    assert "pixels were measured on 20 of the 93 training pictures, chosen by the seed" in "\n".join(said)
    assert any("decoded while they are needed (stream)" in line for line in said)


def test_a_cache_changes_no_bit_of_a_run(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = {"augment": ["flip", "pca_colour"], "epochs": 1}
    trained(pictures, tmp_path / "plain", stream=True, **options).run()
    trained(pictures, tmp_path / "cached", cache="pixels", **options).run()
    assert_same_bits(tmp_path / "cached", final_state(tmp_path / "plain"))


def test_training_with_val_and_recalibrating_works_on_a_stream(pictures, tmp_path):
    options = {"stream": True, "train_on": "train+val", "recalibrate": True, "epochs": 1}
    runner = trained(pictures, tmp_path / "run", figures=True, **options)
    assert len(runner.train_set) == 117 and isinstance(runner.train_set.images, data.Stream)
    summary = runner.run()
    assert summary["test_accuracy"] is not None and (tmp_path / "run/mistakes.png").exists()


def test_predicting_evaluating_and_recalibrating_give_what_they_give_in_memory(pictures):
    held, streamed = (data.load(pictures, size=12, stream=stream).train for stream in (False, True))
    normalize, results = data.Normalize.of(held), []
    for part in (held, streamed):
        model = small_model()
        train.recalibrate(model, part.images, normalize, batch_size=20)
        found = train.evaluate(model, part, normalize, batch_size=10)
        results.append((found.loss, found.accuracy, found.probabilities))
        again = train.predict(model, part.images, normalize, batch_size=10)
        assert np.array_equal(again, found.probabilities)
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one, other)


def test_a_large_set_is_never_decoded_as_a_whole(tmp_path, monkeypatch):
    pictures = write_pictures(tmp_path / "pictures")
    most = []
    job = streaming.Stream._job
    monkeypatch.setattr(streaming.Stream, "_job", lambda self, places, *rest: most.append(len(places))
                        or job(self, places, *rest))  # fmt: skip
    monkeypatch.setattr(streaming.Stream, "__array__", None)
    trained(pictures, tmp_path / "run", stream=True, recalibrate=True, epochs=1).run()
    assert max(most) <= 64


def test_a_draft_is_part_of_what_a_run_is(pictures, tmp_path):
    trained(pictures, tmp_path / "run", draft=True).save()
    again = trained(pictures, tmp_path / "run", draft=True, resume=True)
    assert isinstance(again.train_set.images, data.Stream)
    with pytest.raises(CheckpointError, match="draft is True there and False here"):
        trained(pictures, tmp_path / "run", stream=True, resume=True)


def test_a_checkpoint_of_before_a_picture_was_mended_is_still_one_of_the_run():
    before = {"test pictures": "3 files a", "test labels": "x"}
    now = {state.MENDED: ["a.png"], "test pictures": "3 files b", "test labels": "x"}
    state.same_data("it", before, now, "there")
    with pytest.raises(CheckpointError, match="changed: the test labels"):
        state.same_data("it", {**before, "test labels": "y"}, now, "there")
    with pytest.raises(CheckpointError, match="changed: the test pictures"):
        state.same_data("it", {**before, state.MENDED: ["a.png"]}, now, "there")
