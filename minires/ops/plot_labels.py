"""What an operation is called in a summary and in a plot: a word, with the options that papers write.

A label is a template, ``"conv {kernel}{stride}{groups}{relu}"`` for example. These may stand in it:

    {kernel}    3x3                      {stride}    " /2", nothing for 1        {step}    ", /2"
    {channels}  those of the result      {dilation}  ", dilated 2"               {groups}  ", 4 groups"
    {relu}      ", ReLU" where it ends   {shortcut}  " + shortcut" where one     {added}   "+ shortcut, "
                in one                               is added
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def filled(template: str, options: Mapping[str, Any], shape: tuple[int, ...], inputs: Collection[str]) -> str:
    """A label for one call: its options, the shape of its result, the names of its inputs.

    Raises: KeyError for a place that there is not.
    """
    stride = by_stride(options.get("stride", 1))
    apart, groups = options.get("dilation", 1), options.get("groups", 1)
    added = "add" in inputs
    return template.format_map({
        "kernel": times(options.get("kernel", ())), "stride": stride, "step": f",{stride}" if stride else "",
        "channels": shape[-1] if shape else 1,
        "dilation": f", dilated {_one_or_both(apart)}" if _pair(apart) != (1, 1) else "",
        "groups": f", {groups} groups" if groups > 1 else "",
        "relu": ", ReLU" if options.get("relu") else "",
        "shortcut": " + shortcut" if added else "", "added": "+ shortcut, " if added else "",
    })  # fmt: skip


def by_stride(stride: int | tuple[int, int]) -> str:
    """The stride as the papers write it: /2."""
    return "" if _pair(stride) == (1, 1) else f" /{_one_or_both(stride)}"


def times(shape: Collection[int]) -> str:
    return "x".join(map(str, shape))


def _one_or_both(value: int | tuple[int, int]) -> str:
    high, wide = _pair(value)
    return str(high) if high == wide else f"{high}x{wide}"


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
