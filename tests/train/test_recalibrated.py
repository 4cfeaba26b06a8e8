"""Running statistics measured anew for validation: what it sees, and that the run itself does not notice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits

from minires.errors import MiniresError
from minires.nn import BatchNorm2d
from minires.train import Trainer, evaluate, recalibrate
from minires.train import evaluation as room

SLOW = replace(CONFIG, epochs=2, ema=0.0, keep="all", checkpoint_every=0)


def slow_model():
    """One whose running statistics hardly move from where they began."""
    model = small_model()
    for part in model.modules():
        if isinstance(part, BatchNorm2d):
            part.momentum = 0.01
    return model


def trained(out, config):
    made = {"splits": small_splits(), "model": slow_model()}
    trainer = Trainer(config, out, **made, progress=False, say=lambda _: None, figures=False)
    trainer.run()
    return trainer


def test_validation_sees_the_statistics_of_the_weights_and_training_does_not(tmp_path):
    plain = trained(tmp_path / "plain", SLOW)
    anew = trained(tmp_path / "anew", replace(SLOW, recalibrate=True))
    for before, after in zip(plain.history, anew.history, strict=True):
        assert before["train_loss"] == after["train_loss"]  # to the bit
        assert after["val_loss"] != before["val_loss"]
    model, splits = plain.model, small_splits()
    recalibrate(model, splits.train.images, plain.normalize)
    assert evaluate(model, splits.val, plain.normalize).loss == pytest.approx(anew.history[-1]["val_loss"])


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_has_its_own_statistics_again(fails):
    model, splits = slow_model(), small_splits()
    normalize = room.Normalize.of(splits.train)
    before = {path: array.copy() for path, array in model.named_buffers()}
    try:
        with room.recalibrated(model, splits.train.images, normalize):
            assert not any(np.array_equal(array, before[path]) for path, array in model.named_buffers())
            if fails:
                raise MiniresError("no")
    except MiniresError:
        pass
    assert all(np.array_equal(array, before[path]) for path, array in model.named_buffers())


def test_of_many_pictures_some_are_taken_and_always_the_same(monkeypatch):
    monkeypatch.setattr(room, "ENOUGH", 20)
    seen = []
    monkeypatch.setattr(room, "recalibrate", lambda model, images, normalize, comm: seen.append(images))
    splits = small_splits()
    for _ in range(2):
        with room.recalibrated(slow_model(), splits.train.images, room.Normalize.none()):
            pass
    assert len(seen[0]) == 20 and np.array_equal(*seen)
