"""The default generator of layers: seeds, order, threads, and who does not use it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

import minires
from minires import models, nn
from minires.errors import ConfigError
from minires.nn import init
from minires.tensor import Tensor


def test_layers_need_no_generator_and_never_draw_the_same_numbers():
    minires.manual_seed(1)
    kinds = [
        lambda: nn.Conv2d(2, 3, 3), lambda: nn.Linear(4, 5), lambda: nn.SqueezeExcitation(16),
        lambda: nn.identity_block(4, (2, 2, 4), stage=2, block="b"),
        lambda: nn.convolutional_block(4, (2, 2, 4), stage=2, block="b"),
    ]  # fmt: skip
    for make in kinds:
        one, two = (
            [array for name, array in make().state_dict().items() if name.endswith("weight")] for _ in "ab"
        )
        assert one and not any(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_same_seed_and_order_give_the_same_weights_and_masks():
    x = Tensor(np.ones((1, 50), np.float32))

    def make(seed):
        rng = minires.manual_seed(seed)
        assert isinstance(rng, np.random.Generator) and init.generator(None) is rng
        layers = nn.Linear(50, 50), nn.Dropout(0.5), nn.Conv2d(1, 2, 3), nn.Dropout(0.5)
        masks = layers[1](x).numpy(), layers[3](x).numpy()
        assert not np.array_equal(*masks)
        return [layers[0].weight.numpy(), layers[2].weight.numpy(), *masks]

    one, again, other = make(5), make(5), make(6)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_dropout_changes_no_weights_drawn_after_it_and_a_given_seed_still_counts():
    minires.manual_seed(2)
    plain = nn.Linear(3, 3).weight.numpy()
    minires.manual_seed(2)
    drops = [nn.Dropout(0.5), nn.Dropout(0.5, seed=7), nn.Dropout(0.5, seed=7)]
    assert np.array_equal(nn.Linear(3, 3).weight.numpy(), plain)
    a, b, c = (drop(Tensor(np.ones(100))).numpy() for drop in drops)
    assert np.array_equal(b, c) and not np.array_equal(a, b)


def test_models_by_name_neither_use_nor_change_the_default_generator():
    minires.manual_seed(3)
    state = init.generator(None).bit_generator.state
    one = minires.models.build("se_resnet56_cifar", seed=4, repeats=(1, 1, 1)).state_dict()
    assert init.generator(None).bit_generator.state == state
    minires.manual_seed(9)
    two = minires.models.build("se_resnet56_cifar", seed=4, repeats=(1, 1, 1)).state_dict()
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_new_process_starts_from_seed_0():
    code = "from minires import nn; print(nn.Linear(2, 2).weight.numpy().tolist())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    minires.manual_seed(0)
    assert json.loads(run.stdout) == nn.Linear(2, 2).weight.numpy().tolist()


def test_threads_never_draw_the_same_numbers():
    minires.manual_seed(0)
    made = []
    threads = [
        threading.Thread(target=lambda: made.extend((nn.Linear(2, 2), nn.Dropout(0.5)) for _ in range(50)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({layer.weight.numpy().tobytes() for layer, _ in made}) == 200
    assert len({str(drop.random_states()) for _, drop in made}) == 200


def test_no_two_dropouts_of_a_built_model_or_of_two_drop_the_same_places():
    x = Tensor(np.ones(4000, np.float32))
    masks = []
    dense = ("densenet_bc100_k12_cifar", {"dropout": 0.5})
    for (name, options), seed in ((dense, 0), (dense, 1), (("vgg11", {"size": 32, "hidden": 8}), 0)):
        model = minires.models.build(name, classes=3, seed=seed, **options)
        drops = [module for module in model.modules() if isinstance(module, nn.Dropout)]
        assert len(drops) > 1
        masks += [drop(x).numpy().tobytes() for drop in drops]
    assert len(set(masks)) == len(masks)


def test_the_same_generator_or_seed_given_twice_gives_the_same():
    for make in (
        lambda: nn.Linear(4, 4, rng=np.random.default_rng(5)).weight.numpy(),
        lambda: nn.Conv2d(4, 4, 3, rng=np.random.default_rng(5)).weight.numpy(),
        lambda: nn.Dropout(0.5, seed=5)(Tensor(np.ones(99))).numpy(),
        lambda: minires.models.build("resnet20_cifar", seed=5).fc.weight.numpy(),
    ):
        assert np.array_equal(make(), make())


def test_a_copy_of_a_dropout_drops_the_same_places_until_it_has_a_generator_of_its_own():
    x = Tensor(np.ones(99))
    drop = nn.Dropout(0.5)
    one, two = copy.deepcopy(drop), copy.deepcopy(drop)
    two.rng = np.random.default_rng(7)
    expected = drop(x).numpy()
    assert np.array_equal(one(x).numpy(), expected) and not np.array_equal(two(x).numpy(), expected)


def test_seeds_have_64_bits():
    """Networks draw those of their dropouts from 32 bits, more than kernels count with."""
    for seed in (0, 2**31, 2**32 - 1, 2**64 - 1):
        minires.manual_seed(seed)
        assert nn.Dropout(0.5, seed=seed).rng.random() == np.random.default_rng(seed).random()
    assert isinstance(models.build("vgg11", seed=0), nn.Module)
    with pytest.raises(ConfigError, match="seed is 18446744073709551616; it may be 18446744073709551615"):
        nn.Dropout(0.5, seed=2**64)
