"""Labels of operations in a summary and in a plot: what is filled into their templates."""

import pytest

from minires.ops.plot_labels import by_stride, filled, times

EVERY = "conv {kernel}{stride}{step} {channels}{dilation}{groups}{relu}{shortcut} {added}"


def test_an_operation_without_options_has_nothing_to_show_but_its_channels():
    assert filled(EVERY, {}, (2, 5), ()) == "conv  5 " and filled("{channels}", {}, (), ()) == "1"


def test_options_stand_as_papers_write_them():
    options = {"kernel": (3, 5), "stride": (2, 1), "dilation": 2, "groups": 4, "relu": True}
    assert filled(EVERY, options, (2, 8), ("x", "add")) == (
        "conv 3x5 /2x1, /2x1 8, dilated 2, 4 groups, ReLU + shortcut + shortcut, "
    )
    plain = {"kernel": (1, 1), "stride": (1, 1), "dilation": (1, 1), "groups": 1, "relu": False}
    assert filled(EVERY, plain, (2, 8), ("x", "w")) == "conv 1x1 8 "
    options = {"dilation": (1, 3), "groups": 2}
    assert filled("{dilation}{groups}", options, (), ()) == ", dilated 1x3, 2 groups"
    assert by_stride(1) == by_stride((1, 1)) == "" and by_stride(2) == by_stride((2, 2)) == " /2"
    assert times((3, 4, 5)) == "3x4x5"


def test_a_place_that_there_is_not():
    with pytest.raises(KeyError, match="size"):
        filled("pool {size}", {}, (), ())
