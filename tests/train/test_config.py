"""Configurations and recipes: JSON and back, and unknown names answered with the nearest one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minires import data, models, optim
from minires.errors import ConfigError
from minires.tensor import Tensor
from minires.train import Config, recipes
from minires.train.schedules import Schedule


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_json_and_can_be_built(name):
    config = Config.of(name, seed=3)
    again = Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.recipe == name and again.seed == 3
    optimizer = optim.build(config.optimizer, [Tensor(np.zeros(2), requires_grad=True)])
    assert 0 < optimizer.lr < 1
    schedule = Schedule(config.schedule, lr=optimizer.lr, total_steps=100)
    assert max(schedule.lr(step) for step in range(100)) == pytest.approx(optimizer.lr, rel=0.05)
    data.build(config.augment)
    assert config.model in models.names()


def test_the_variant_of_a_recipe_is_one_of_its_own_model():
    own = Config.of("default")
    assert own.variant and Config.of("default", model=own.model).variant == own.variant
    assert Config.of("default", model="another").variant == {}
    assert Config.of("default", model="another", variant={"a": 1}).variant == {"a": 1}


def test_recipes_meet_their_names():
    assert Config.of("two-epoch").epochs == 2 and Config.of("default").epochs <= 20
    blog = Config.of("blog")
    assert (blog.epochs, blog.batch_size, blog.normalize, blog.augment) == (2, 32, "none", [])
    assert blog.optimizer["name"] == "adam" and blog.optimizer["lr"] == 1e-3
    cifar = Config.of("cifar")
    assert cifar.optimizer == {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    assert cifar.batch_size == 128 and cifar.model == "resnet20_cifar"
    assert 64_000 <= cifar.epochs * 352 < 64_500  # 45,000 pictures make 352 steps
    large = Config.of("imagenet")
    assert (large.model, large.size, large.batch_size) == ("resnet50", 224, 256)
    assert large.optimizer == cifar.optimizer and large.augment[0] == ["scale_crop", {"shorter": [256, 480]}]
    assert large.schedule["name"] == "plateau" and large.schedule["factor"] == 0.1
    assert 590_000 <= large.epochs * (1_281_167 // 256) <= 610_000  # 60e4 iterations


def test_changing_a_configuration_does_not_change_the_recipe():
    recipes.get("blog")["optimizer"]["lr"] = 7.0
    assert Config.of("blog").optimizer["lr"] == 1e-3
    mine = {"optimizer": {"name": "sgd", "lr": 0.1}}
    Config.from_dict(mine).optimizer["lr"] = 7.0
    assert mine["optimizer"]["lr"] == 0.1


def test_wrong_names_and_values_are_answered():
    for make, message in [
        (lambda: Config.of("tow-epoch"), "unknown recipe 'tow-epoch'. Did you mean 'two-epoch'"),
        (lambda: Config.of("default", epocs=3), "unknown setting 'epocs'. Did you mean 'epochs'"),
        (lambda: Config.from_dict({"batchsize": 3}), "Did you mean 'batch_size'"),
        (lambda: Config(epochs=0), "epochs is 0; it must be at least 1"),
        (lambda: Config(batch_size=-4), "batch_size is -4"),
        (lambda: Config(seed=-1), "seed is -1"),
        (lambda: Config(variant={"classes": 3}), "variant cannot set classes: it follows from the pictures"),
        (lambda: Config(variant={"name": "x"}), "variant cannot set name: give the setting model"),
        (lambda: Config(variant={"seed": 3}), "variant cannot set seed: give the setting seed"),
        (lambda: Config(seed=2**64), "seed is 18446744073709551616; it must be at least 0 and below"),
        (lambda: Config(ema=1.0), "ema is 1.0; it must be at least 0 and below 1"),
        (lambda: Config(ema=float("nan")), "ema is nan"),
        (lambda: Config(epochs=True), "epochs is True; it must be of type int"),
        (lambda: Config(drop_last=1), "drop_last is 1; it must be of type bool"),
        (lambda: Config(augment="flip"), "augment is 'flip'; it must be of type list"),
        (lambda: Config(train_on="trian"), "Did you mean 'train'"),
        (lambda: Config(normalize="nine"), "Did you mean 'none'"),
        (lambda: Config(variant={"x": object()}).to_dict(), "cannot be written as JSON"),
        (lambda: optim.build({"name": "adm", "lr": 1}, []), "unknown optimizer 'adm'. Did you mean 'adam'"),
        (lambda: optim.build({"name": "sgd", "lr": 1, "momentm": 1}, []), "Did you mean 'momentum'"),
        (lambda: optim.build({"name": "sgd"}, []), "needs a learning rate"),
    ]:
        with pytest.raises(ConfigError, match=message):
            make()
