"""Messages about names that do not exist: what they say, and that they never end in nothing."""

import numpy as np
import pytest

from minires import cli, models, nn
from minires.errors import CheckpointError, ConfigError, MiniresError, harmless, nearest, unknown
from minires.models import MODELS
from minires.train.finetune import freeze
from minires.weights import names_of


def test_unknown_names_the_kind_the_nearest_and_all():
    assert unknown("kind", 3, iter(("a", "b"))) == "unknown kind 3. Known: a, b"
    assert unknown("kind", "x", ()) == "unknown kind 'x'. Known: there are none"


def test_nearest_sorts_what_comes_in_no_order():
    assert nearest("b", {"c", "b1", "b2"}, count=2) in ("the nearest are b2, b1", "the nearest are b1, b2")


@pytest.mark.parametrize(
    ("name", "known", "answer"),
    [
        ("b", ["c"], "there is c"),
        ("xyzzy", ["n2", "n1"], "there are n1, n2"),
        ("xyzzy", map(str, range(10, 32)), "there are " + ", ".join(map(str, range(10, 30))) + " and 2 more"),
        ("", ["a", "b"], "there are a, b"),
        (None, ["a", "b"], "there are a, b"),
        ("vgg", ["alexnet", "vgg16_bn"], "the nearest is vgg16_bn"),
        ("VGG16", ["alexnet", "vgg16"], "the nearest is vgg16"),
        ("bn1", ["res2a.conv1", "res2a.branch.bn1"], "the nearest is res2a.branch.bn1"),
    ],
)
def test_only_what_is_near_is_called_so_and_else_it_is_said_what_there_is(name, known, answer):
    assert nearest(name, known) == answer


def test_of_nothing_near_no_name_is_offered(capsys):
    for ask in (["models", "xyzzy"], ["summary", "xyzzy"], ["train", "--model", "xyzzy", "--data", "hands"]):
        assert cli.main(ask) == 2
        error = capsys.readouterr().err
        assert f"unknown model 'xyzzy'; there are {len(MODELS)}, and `minires models` lists them" in error
    with pytest.raises(ConfigError, match="unknown initialiser 'xyzzy'. Known: "):
        nn.init.get("xyzzy")
    with pytest.raises(CheckpointError, match=r"unexpected: xyzzy \(1,\)$"):
        nn.ReLU().load_state_dict({"xyzzy": np.zeros(1)})


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


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("ResNet50", "resnet50"), ("resnet-50", "resnet50"), ("vgg16bn", "vgg16_bn"),
        ("seresnet50", "se_resnet50"), ("resnet50_v2", "resnet50v2_keras"),
        ("resnet20", "resnet20_cifar"), ("resnet1001", "resnet101"),
    ],
)  # fmt: skip
def test_a_name_is_known_again_without_its_signs_and_capitals(given, meant):
    with pytest.raises(ConfigError, match=rf"the nearest are {meant},"):
        models.build(given)


def test_a_message_shows_what_a_terminal_would_obey():
    error = MiniresError("a\x1b[2J\x07\r\x9b1m\u202ecba\u2028.jpg:\n\tnext é 手")
    assert str(error) == "a\\x1b[2J\\x07\\x0d\\x9b1m\\u202ecba\\u2028.jpg:\n\tnext é 手"
    assert "".join(map(chr, range(32, 127))) == harmless("".join(map(chr, range(32, 127))))
