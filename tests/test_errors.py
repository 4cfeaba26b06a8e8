"""Messages about names that do not exist: what they say, and that they never end in nothing."""

import pytest

from minires import nn
from minires.errors import ConfigError, nearest, unknown
from minires.train.finetune import freeze
from minires.weights import names_of


def test_unknown_names_the_kind_the_nearest_and_all():
    assert unknown("kind", 3, iter(("a", "b"))) == "unknown kind 3. Known: a, b"
    assert unknown("kind", "x", ()) == "unknown kind 'x'. Known: there are none"


def test_nearest_sorts_what_comes_in_no_order():
    assert nearest("b", {"c", "b1", "b2"}, count=2) in ("the nearest are b2, b1", "the nearest are b1, b2")
    assert nearest("b", {"c": 1}) == "the nearest is c"


def test_a_model_without_parts_says_so():
    with pytest.raises(ConfigError, match=r"no part 'res2a' to freeze; there are none at all$"):
        freeze(nn.ReLU(), ["res2a"])


def test_a_model_without_parameters_has_no_names_in_other_files():
    with pytest.raises(ConfigError, match="makes them, not for a model without parameters$"):
        names_of("torchvision", nn.ReLU())
    with pytest.raises(ConfigError, match="makes them, not for a model of 0, ...$"):
        names_of("torchvision", nn.Sequential(nn.Linear(2, 2)))


def test_a_known_name_that_begins_with_what_was_given_is_the_nearest():
    found = nearest("resnet20", ["resnet200", "resnet20_cifar", "resnet26"], count=1)
    assert found.endswith("resnet20_cifar")
    assert "Did you mean 'classes'?" in unknown("option", "num_classes", ["stages", "classes"])
