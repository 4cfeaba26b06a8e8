"""Runs that learn from some of the pictures: which, for every seed and process; resumed, and refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits, write_pictures

from minires import distributed
from minires.commands.pictures import learnt
from minires.data import Glance, Normalize, load
from minires.distributed import Solo
from minires.errors import CheckpointError, ConfigError
from minires.train import Config, Trainer, auto
from minires.train.balance import class_weights


def trainer(out, splits=None, model=None, lines=None, **changes):
    config = replace(CONFIG, epochs=1, **changes)
    return Trainer(config, out, splits=splits or small_splits(), model=model or small_model(),
                   say=(lambda line: None) if lines is None else lines.append, progress=False, comm=Solo(),
                   figures=False)  # fmt: skip


def test_it_learns_from_these_and_validates_and_tests_on_all(tmp_path):
    splits, lines = small_splits(), []
    run = trainer(tmp_path / "run", splits, lines=lines, pictures=31)
    assert run.train_set.names == splits.train.some(31).names
    assert (run.val_set, run.splits.test) == (splits.val, splits.test)
    summary = run.run()
    assert run.progress.step == 4 and summary["train_pictures"] == 31 and summary["test_pictures"] == 24
    assert ": 31 of 93 training, 24 validation, 24 test pictures" in lines[0]
    assert run.normalize == Normalize.of(splits.train.some(31)) != Normalize.of(splits.train)
    assert json.loads((tmp_path / "run/config.json").read_text())["pictures"] == 31


def test_they_are_the_same_for_every_seed(tmp_path):
    names = [trainer(tmp_path / str(seed), pictures=20, seed=seed).train_set.names for seed in (0, 1)]
    assert names[0] == names[1] and len(names[0]) == 20


def test_with_the_validation_pictures_it_chooses_from_both(tmp_path):
    splits, lines = small_splits(), []
    run = trainer(tmp_path / "run", splits, pictures=60, train_on="train+val", keep="none", lines=lines)
    assert run.train_set.names == splits.train.join(splits.val).some(60).names and run.val_set is None
    run.run()
    assert ": 60 of 117 training, 0 validation" in lines[0]


def test_classes_are_balanced_by_the_pictures_that_are_learned_from(tmp_path):
    uneven = replace(small_splits(), train=small_splits().train.take([*range(0, 93, 3), *range(1, 31, 3)]))
    run = trainer(tmp_path / "run", uneven, balance="weights", pictures=20)
    assert np.bincount(run.train_set.labels, minlength=3).tolist() == [15, 5, 0]
    assert np.array_equal(run._loss.weights, class_weights(run.train_set.labels, 3))


def test_more_than_there_are_is_refused_and_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="94 pictures of data set 'stripes' .* only 93 to learn from"):
        trainer(tmp_path / "run", pictures=94)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="pictures is 0; it must be at least 1"):
        Config(pictures=0)


def test_another_number_is_another_run(tmp_path):
    class Stops(Exception):
        pass

    out, config = tmp_path / "run", replace(CONFIG, pictures=40)
    run = Trainer(config, out, splits=small_splits(), model=small_model(), say=lambda line: None,
                  progress=False, comm=Solo(), figures=False)  # fmt: skip
    step = run._step

    def some(x, y):
        if run.progress.step == 7:
            raise Stops
        step(x, y)

    run._step = some
    with pytest.raises(Stops):
        run.run()
    options = {"splits": small_splits(), "resume": True, "say": lambda line: None, "progress": False,
               "comm": Solo(), "figures": False}  # fmt: skip
    for other in (41, None):
        with pytest.raises(CheckpointError, match="belongs to another run: pictures"):
            Trainer(replace(config, pictures=other), out, model=small_model(), **options)
    resumed = Trainer(None, out, model=small_model(), **options)
    resumed.run()
    whole = Trainer(config, tmp_path / "whole", splits=small_splits(), model=small_model(),
                    say=lambda line: None, progress=False, comm=Solo(), figures=False)  # fmt: skip
    whole.run()
    for name, array in whole.model.state_dict().items():
        assert np.array_equal(array, resumed.model.state_dict()[name]), name


def test_a_stream_learns_from_the_same_to_the_same_bits(tmp_path):
    path, found = str(write_pictures(tmp_path / "pictures")), []
    for stream in (False, True):
        config = replace(CONFIG, data=path, size=12, stream=stream, epochs=1, pictures=24, augment=[])
        run = Trainer(config, tmp_path / str(stream), model=small_model(), say=lambda line: None,
                      progress=False, comm=Solo(), figures=False)  # fmt: skip
        run.run()
        found.append(run.model.state_dict())
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_what_it_has_not_learned_from_is_not_said_to_be_known(tmp_path):
    path = write_pictures(tmp_path / "pictures")
    config = replace(CONFIG, data=str(path), size=12, epochs=1, pictures=24)
    Trainer(config, tmp_path / "run", model=small_model(), say=lambda line: None, progress=False,
            comm=Solo(), figures=False).run()  # fmt: skip
    train = load(str(path), size=12).train
    assert learnt(str(tmp_path / "run"), 12).among(train) == (24, 93)


def test_ranks_share_batches_of_the_same_pictures(tmp_path):
    def work(comm):
        config = replace(CONFIG, epochs=1, pictures=24, augment=[], batch_norm="sync")
        run = Trainer(config, tmp_path / str(comm.size), splits=small_splits(), model=small_model(),
                      say=lambda line: None, progress=False, comm=comm, figures=False)  # fmt: skip
        run.run()
        return run.train_set.names, run.history[0]["train_loss"]

    alone = work(Solo())
    for names, loss in distributed.run(2, work):
        assert names == alone[0] and loss == pytest.approx(alone[1], rel=1e-3)


def test_what_the_recipe_auto_chooses_follows_the_pictures_that_are_learned_from():
    seen = Glance("pets", ("cat", "dog"), {"train": (3000, 1000), "val": (30, 10), "test": (9, 9)}, 300)
    chosen = auto.choose(seen, {"pictures": 40, "train_on": "train"})
    assert chosen.seen.counts["train"] == (30, 10) and chosen.settings["batch_size"] == 16
    assert chosen.settings["epochs"] >= 400 / 2 and chosen.settings["pictures"] == 40
    assert "40 training pictures of 2 classes, 10 to 30 of each" in chosen.lines[0]
    with pytest.raises(ConfigError, match="5,000 pictures of data set 'pets' .* only 4,000"):
        auto.choose(seen, {"pictures": 5000, "train_on": "train"})
