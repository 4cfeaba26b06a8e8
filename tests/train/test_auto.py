"""What the recipe auto chooses from the pictures, and that whatever is given stays."""

from __future__ import annotations

import numpy as np
import pytest

from minires import data, models, optim
from minires.data import Glance
from minires.errors import CheckpointError, ConfigError
from minires.tensor import Tensor
from minires.train import Config, auto, freeze, load_model, starters
from minires.train.schedules import Schedule


def seen(*per_class, shorter=400, val=0, test=20):
    names = tuple(f"class{k}" for k in range(len(per_class)))
    counts = {"train": per_class, "val": (val,) + (0,) * (len(names) - 1), "test": (test,) * len(names)}
    return Glance("photos", names, counts, shorter)


def chosen(glance, **given):
    return auto.choose(glance, given).settings


def steps(settings, pictures):
    batch = settings["batch_size"]
    per_epoch = pictures // batch if settings["drop_last"] else -(-pictures // batch)
    return settings["epochs"] * per_epoch


@pytest.mark.parametrize("counts", [(1, 1), (2, 3), (9, 8), (16, 15, 15), (50,) * 5, (900, 20), (6000, 7000)])
def test_every_choice_is_a_configuration_that_can_run(counts):
    choice = auto.choose(seen(*counts, val=sum(counts) // 4))
    config = Config.from_dict(choice.settings)
    assert 1 < config.batch_size <= max(2, choice.seen.total("train"))
    optimizer = optim.build(config.optimizer, [Tensor(np.zeros(2), requires_grad=True)])
    Schedule(config.schedule, lr=optimizer.lr, total_steps=10)
    data.build(config.augment)
    trained = load_model(starters.path_of(config.start_from))
    assert (config.model, config.variant) == (trained.name, trained.variant)


@pytest.mark.parametrize("count", [3, 17, 46, 59, 250, 900, 3000, 40_000, 300_000, 5_000_000])
def test_few_pictures_get_enough_steps_and_many_not_too_many(count):
    settings = chosen(seen(count // 3, count - count // 3))
    assert steps(settings, count) >= auto.STEPS
    assert settings["epochs"] >= auto.FEWEST_EPOCHS
    if settings["epochs"] > auto.FEWEST_EPOCHS and steps(settings, count) > auto.STEPS * 1.2:
        assert settings["epochs"] <= auto.EPOCHS
        assert steps(settings, count) <= auto.MOST_STEPS * 1.4  # a part of an epoch more


def test_the_size_is_that_of_the_start():
    assert chosen(seen(20, 20, shorter=400))["size"] == 32
    assert chosen(seen(20, 20), size=64)["size"] == 64


def test_uneven_classes_are_balanced():
    assert chosen(seen(20, 30))["balance"] == "none"
    assert chosen(seen(20, 60, 30))["balance"] == "sampler"


def test_the_best_epoch_is_kept_where_validation_means_something():
    few = chosen(seen(20, 20, val=10))
    assert (few["keep"], few["train_on"]) == ("none", "train+val")
    many = chosen(seen(200, 200, val=100))
    assert (many["keep"], many["train_on"]) == ("best", "train")
    assert chosen(seen(200, 200, val=100), train_on="train+val")["keep"] == "none"


@pytest.mark.parametrize("given", [{"patience": 3}, {"keep": "best"}, {"train_on": "train"}])
def test_who_asks_for_validation_gets_it_of_few_pictures_too(given):
    settings = chosen(seen(20, 20, val=10), **given)
    Config.from_dict(settings)
    assert settings["train_on"] == "train"


def test_pictures_that_are_trained_on_too_count():
    choice = auto.choose(seen(14, 16, val=8))
    assert choice.lines[0].startswith("38 training pictures of 2 classes, 16 to 22 of each")
    assert choice.seen.counts == {"train": (22, 16), "test": (20, 20)}
    assert steps(choice.settings, 38) >= auto.STEPS


def test_what_learns_is_tried_on_a_few_pictures_with_a_new_last_layer():
    glance = seen(20, 20, val=10)
    both = auto.ways(glance)
    assert list(both) == [auto.ALL, auto.LAST] and both[auto.ALL] == chosen(glance)
    last = both[auto.LAST]
    model = models.build(last["model"], classes=2, **last["variant"])
    frozen = freeze(model, last["freeze"])
    learning = {name for name, one in model.named_parameters() if one.requires_grad}
    assert learning == {"fc.weight", "fc.bias"}
    assert frozen == sum(one.size for name, one in model.named_parameters() if name not in learning)
    assert auto.ways(seen(3, 20)) and not auto.ways(seen(2, 20)), "too few of a class to leave some out"
    assert auto.ways(seen(500, 500)) and not auto.ways(seen(501, 500)), "many can teach all layers"
    assert auto.ways(glance, {"epochs": 134}), "402 steps"
    for given in ({"freeze": []}, {"epochs": 133}, {"start_from": None}, {"model": "resnet18"}):
        assert not auto.ways(glance, given)
    assert auto.ways(glance, {"seed": 3})[auto.LAST]["seed"] == 3
    adam = {"name": "adam", "lr": 0.5}
    assert [one["optimizer"] for one in auto.ways(glance, {"optimizer": adam}).values()] == [adam, adam]
    for name, value in (("epochs", "many"), ("epochs", None), ("drop_last", "x"), ("train_on", 3)):
        with pytest.raises(ConfigError, match=name):
            auto.ways(glance, {name: value})


def test_the_better_way_is_taken_and_all_layers_if_they_are_as_good():
    glance = seen(20, 20, val=10)
    for last, freezes in ((0, False), (40, False), (41, True)):
        tried = {auto.ALL: 40, auto.LAST: last}
        choice = auto.choose(glance, None, tried)
        assert choice.settings == auto.ways(glance)[auto.LAST if freezes else auto.ALL]
        assert f"of 50 pictures, each left out once, got right: all layers 40, {auto.LAST} {last})" in (
            choice.lines[1]
        )
        assert ("measured anew" in choice.lines[2]) is not freezes
    with pytest.raises(ConfigError, match="what was tried is 'all layers' and 'the last layer alone'"):
        auto.choose(glance, None, {"some layers": 40})
    assert auto.choose(glance, None, {auto.LAST: 40, auto.ALL: 40}).settings == auto.ways(glance)[auto.ALL]


def test_why_nothing_is_tried_is_said():
    for glance, given, why in (
        (seen(20, 20), {"epochs": 33}, "all layers learn, as it takes 400 steps or more"),
        (seen(2, 20), {}, "all layers learn, as a class of fewer than 3 pictures is too small"),
        (seen(600, 600), {}, "all layers learn, which suits more than 1,000 pictures"),
        (seen(20, 20), {"start_from": None}, "all layers learn, as there is nothing to start from"),
        (seen(20, 20), {"freeze": []}, "all layers learn, as --freeze says"),
        (seen(20, 20), {"freeze": ["conv1"]}, "some layers learn, as --freeze says"),
    ):
        assert f": {why}" in auto.choose(glance, given).lines[1]


def test_a_choice_is_nobody_elses():
    one = chosen(seen(20, 20))
    one["augment"][0][1]["scale"][0] = 0.1
    assert chosen(seen(20, 20))["augment"] == auto.AUGMENT != one["augment"]


def test_nothing_is_new_where_the_start_knows_the_classes():
    trained = load_model(starters.path_of("starter"))
    counts = {part: (9,) * 10 for part in ("train", "val", "test")}
    assert not auto.ways(Glance("same", trained.classes[::-1], counts, shorter=32))


def test_what_is_given_stays_and_the_rest_follows_it():
    given = {
        "epochs": 3, "batch_size": 5, "size": 48, "augment": ["flip"], "recalibrate": False, "device": "cpu",
        "optimizer": {"name": "sgd", "lr": 0.1}, "label_smoothing": 0.0, "balance": "weights", "keep": "all",
        "schedule": {"name": "cosine"}, "drop_last": False, "start_from": None, "model": "resnet18",
        "variant": {"stem": "cifar"},
    }  # fmt: skip
    settings = chosen(seen(20, 80), **given)
    assert {name: settings[name] for name in given} == given
    lines = auto.choose(seen(20, 80), given).lines
    assert "resnet18, from the beginning, at 48x48" in lines[0] and "60 steps of 5 pictures" in lines[1]
    assert "flip; classes are balanced (weights); validation pictures are trained on, too (" in lines[2]


def test_another_model_starts_from_the_beginning():
    settings = chosen(seen(20, 20), model="resnet18")
    assert settings["start_from"] is None and settings.get("size") is None
    assert chosen(seen(20, 20), start_from=None)["model"] == "resnet20_cifar"
    with pytest.raises(ConfigError, match="unknown model 'resnet81'"):
        chosen(seen(20, 20), model="resnet81")
    with pytest.raises(CheckpointError, match="nothing.safetensors does not exist"):
        chosen(seen(20, 20), start_from="nothing.safetensors")
    wrong = {"batch_size": [0, "x"], "epochs": [0], "augment": ["flip"], "size": ["x"]}
    for name, value in [(name, value) for name, values in wrong.items() for value in values]:
        with pytest.raises(ConfigError, match=name):
            chosen(seen(20, 20), **{name: value})


def test_three_lines_say_what_and_why():
    lines = auto.choose(seen(16, 15, 15)).lines
    assert lines[0].startswith("46 training pictures of 3 classes, 15 to 16 of each, shorter side about 400 ")
    assert "from `starter`, at 32x32" in lines[0] and "--start-from" in lines[0]
    assert "400 steps of 16 pictures, 200 epochs" in lines[1] and "--epochs" in lines[1]
    assert "crop, flip, jitter" in lines[2] and "measured anew" in lines[2]


def test_a_starter_is_found_by_its_name_and_knows_what_it_learnt_from():
    assert starters.names() == ("starter",)
    trained = load_model(starters.path_of("starter"))
    assert trained.size == (32, 32) and len(trained.classes) == 10 and trained.dataset == "cifar10"
    assert sum(parameter.size for parameter in trained.model.parameters()) == 605_026
    assert starters.path_of("./starter") == "./starter"
