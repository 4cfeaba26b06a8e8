"""What differs between two models: against the published figures, and nothing may be lost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minires import models, nn
from minires.errors import ConfigError, ShapeError
from minires.inspect import Diff, diff, parse

ROWS = json.loads((Path(__file__).parents[1] / "models" / "counts.json").read_text())
RNG = np.random.default_rng(0)


def compare(a: str, b: str, size: int = 64) -> Diff:
    built = []
    for text in (a, b):
        name, variant = parse(text)
        built.append(models.build(name, **{"initializer": "zeros", **variant}))
    return diff(built[0], built[1], (size, size, 3), names=(a, b))


def published(text: str) -> dict[str, Any]:
    name, variant = parse(text)
    classes = models.entry(name).classes
    return next(
        row for row in ROWS
        if row["build"] == name and row["options"] == variant and row["classes"] == classes
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------- figures


def test_shortcut_a_against_b() -> None:
    found = compare("resnet34 shortcut=A", "resnet34 shortcut=B", 224)
    a, b = published("resnet34 shortcut=A"), published("resnet34")
    assert (found.a.params_total, found.b.params_total) == (a["params_total"], b["params_total"])
    # Option B has a convolution and a batch norm more where a stage begins, and differs in nothing else.
    assert all(before is None for before, _ in found.layers)
    assert [after.name for _, after in found.layers if after] == [
        "res3a_branch1", "bn3a_branch1", "res4a_branch1", "bn4a_branch1", "res5a_branch1", "bn5a_branch1",
    ]  # fmt: skip
    assert not found.equal and not found.moved and not found.renamed
    assert [(one.name, one.a, one.b, one.where) for one in found.settings] == [
        ("shortcut", "A", "B", ("res3a", "res4a", "res5a"))
    ]
    text = str(found)
    assert text.startswith("- resnet34 shortcut=A\n+ resnet34 shortcut=B\ninput 224x224x3\n")
    lines = [line.split() for line in text.splitlines()]
    assert ["parameters", "21,639,080", "21,814,696", "+175,616"] in lines
    assert ["+", "res3a:", "2", "layers", "1x1", "/2", "28x28x128", "8,704", "6,422,528"] in lines
    assert "Of 69 and 75 layers, 0 differ, 0 are only in -, 6 only in +." in text


@pytest.mark.parametrize(
    "a, b",
    [
        ("resnet50", "resnet50v2_keras"), ("resnet50", "resnet101"), ("resnet50", "densenet121"),
        ("resnet50", "preresnet50"), ("se_resnet50", "resnet50"), ("vgg16", "vgg16_bn"),
        ("resnet50 stride_on=3x3", "resnext50_32x4d"), ("bn_inception", "resnet18"),
    ],
)  # fmt: skip
def test_what_the_rows_say_adds_up_to_the_difference_of_the_totals(a: str, b: str) -> None:
    found = compare(a, b, 224)
    for total, part in (("params_total", "params"), ("params_trainable",) * 2, ("macs",) * 2):
        lists = [[getattr(pair[i], part) for pair in found.layers if pair[i]] for i in (0, 1)]
        difference = getattr(found.b, total) - getattr(found.a, total)
        assert sum(lists[1]) - sum(lists[0]) == difference == published(b)[total] - published(a)[total]
    # Each layer has one row at most, and those without one are equal in number on both sides.
    sides = [[pair[i] for pair in found.layers if pair[i]] for i in (0, 1)]
    assert all(len({id(layer) for layer in side}) == len(side) for side in sides)
    assert len(found.a.layers) - len(sides[0]) == len(found.b.layers) - len(sides[1])
    assert max(map(len, str(found).splitlines())) <= 100


def test_pre_activation_moves_layers() -> None:
    found = compare("resnet50", "resnet50v2_keras", 224)
    assert "bn2a_branch2a" in found.moved and "In another order: 52 (" in str(found)
    assert [b.name for a, b in found.layers if b and not a] == ["pad1", "post_bn"]
    assert [a.name for a, b in found.layers if a and not b] == [
        "bn_conv1", "bn2a_branch1", "bn3a_branch1", "bn4a_branch1", "bn5a_branch1",
    ]  # fmt: skip
    rows = {a.name: (a, b) for a, b in found.layers if a and b}
    before, after = rows["res3a_branch2a"]
    assert (before.kind, after.kind) == ("conv 1x1 /2", "conv 1x1")
    settings = {one.name: one for one in found.settings}
    assert (settings["bias"].a, settings["bias"].b) == (None, "learned")
    assert "conv1" in settings["bias"].where and "res2a_branch2a" not in settings["bias"].where
    assert (settings["eps"].a, settings["eps"].b) == (1e-5, 1.001e-5)


def test_a_run_of_equal_blocks_is_one_line() -> None:
    found = compare("resnet50", "resnet101", 224)
    assert len(found.layers) == 17 * 6 and len(found.renamed) == 8 * 6
    assert ("res3b_branch2a", "res3b1_branch2a") in found.renamed
    rows = [line for line in str(found).splitlines() if line.startswith("+ res")]
    assert [row.split()[1:5] for row in rows[1:]] == [["res4b6-res4b22:", "6", "layers", "x17"]]


def test_a_changed_layer_has_two_lines_with_both_values() -> None:
    text = str(compare("resnet50", "resnet50 stride_on=3x3", 224))
    lines = [line.split() for line in text.splitlines()]
    at = lines.index("- res3a_branch2a conv 1x1 /2 28x28x128 32,768 25,690,112".split())
    assert lines[at + 1] == "+ res3a_branch2a conv 1x1 56x56x128 = 102,760,448".split()
    assert ["parameters", "25,610,152", "25,610,152", "none"] in lines


# --------------------------------------------------------------------------------------------------- equal


def test_equal_models_are_said_to_be_equal() -> None:
    found = compare("resnet18", "resnet18 shortcut=B")
    assert found.equal and not found.layers and not found.settings
    assert "Equal: 43 layers" in str(found) and "parameters  " not in str(found)


def chain(**parts: nn.Module) -> nn.Module:
    return nn.Sequential(**parts)


def conv(out: int = 4, kernel: int = 1) -> nn.Conv2d:
    return nn.Conv2d(4, out, kernel, padding=kernel // 2, rng=RNG)


def small(a: nn.Module, b: nn.Module) -> Diff:
    return diff(a, b, (6, 8, 4))


def test_each_difference_alone_makes_models_unequal() -> None:
    found = small(chain(c=conv(), n=nn.BatchNorm2d(4)), chain(c=conv(), n=nn.BatchNorm2d(4, eps=0.1)))
    assert not found.equal and [(one.name, one.a, one.b) for one in found.settings] == [("eps", 1e-3, 0.1)]

    found = small(chain(c=conv(), r=nn.ReLU()), chain(r=nn.ReLU(), c=conv()))
    assert not found.equal and not found.layers and len(found.moved) == 1

    found = small(chain(c=conv(), n=nn.BatchNorm2d(4)), chain(first=conv(), second=nn.BatchNorm2d(4)))
    assert not found.equal and not found.layers
    assert found.renamed == (("c", "first"), ("n", "second"))

    frozen = conv()
    frozen.weight.requires_grad = False
    found = small(chain(c=conv()), chain(c=frozen))
    assert not found.equal and "20 trained" in str(found) and "4 trained" in str(found)

    found = small(chain(c=conv()), chain(c=conv(kernel=3)))
    assert not found.equal and [(a.kind, b.kind) for a, b in found.layers if a and b] == [
        ("conv 1x1", "conv 3x3")
    ]


def test_layers_of_other_names_are_paired_by_position_where_both_do_the_same_steps() -> None:
    found = small(chain(c=conv(), n=nn.BatchNorm2d(4)), chain(first=conv(8), second=nn.BatchNorm2d(8)))
    assert [(a.name, b.name) for a, b in found.layers if a and b] == [("c", "first"), ("n", "second")]
    found = small(chain(c=conv()), chain(r=nn.ReLU(), first=conv(8)))
    assert [(a and a.name, b and b.name) for a, b in found.layers] == [
        ("c", None),
        (None, "r"),
        (None, "first"),
    ]


def test_a_layer_that_is_called_twice() -> None:
    shared = conv()
    once, twice = chain(c=conv()), chain(c=shared, again=shared)
    found = small(once, twice)
    assert [(a and a.name, b and b.name) for a, b in found.layers] == [(None, "c")]


def test_memory_is_compared_where_asked() -> None:
    one, other = chain(c=conv(), r=nn.ReLU()), chain(c=conv())
    assert "saved bytes" not in str(small(one, other))
    found = diff(one, other, (6, 8, 4), memory=True)
    assert found.a.saved and found.b.saved and found.a.saved > found.b.saved
    assert "saved bytes" in str(found)


def test_the_dict_can_be_written_as_json() -> None:
    content = json.loads(json.dumps(compare("resnet18 shortcut=A", "resnet18").to_dict()))
    assert content["a"] == "resnet18 shortcut=A" and content["input"] == [64, 64, 3]
    assert content["equal"] is False
    assert content["totals"]["params_total"] == {"a": 11_523_496, "b": 11_699_112}
    assert content["layers"][0]["a"] is None and content["layers"][0]["b"]["name"] == "res3a_branch1"
    assert content["settings"][0]["where"] == ["res3a", "res4a", "res5a"]


def test_a_picture_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="channels"):
        diff(chain(c=conv()), chain(c=conv()), (6, 8, 3))


# --------------------------------------------------------------------------------------------------- parse


def test_parse_reads_a_name_and_options() -> None:
    assert parse("resnet50") == ("resnet50", {})
    assert parse("  resnet34  shortcut=A ") == ("resnet34", {"shortcut": "A"})
    assert parse("densenet121 blocks=[2,2] theta=0.5 shared=false init_channels=null") == (
        "densenet121", {"blocks": [2, 2], "theta": 0.5, "shared": False, "init_channels": None},
    )  # fmt: skip
    assert parse("resnet50 stride_on=3x3 bn_eps=1e-3") == (
        "resnet50", {"stride_on": "3x3", "bn_eps": 0.001},
    )  # fmt: skip


@pytest.mark.parametrize("text", ["", "  ", "shortcut=A", "resnet34 shortcut", "resnet34 =A"])
def test_parse_refuses_what_is_no_model(text: str) -> None:
    with pytest.raises(ConfigError, match="names no model|is no option"):
        parse(text)
