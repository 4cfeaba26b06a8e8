"""What an operation declares is enough for every room: each of them is asked here for every operation."""

from __future__ import annotations

import ast
import base64
import json
import re
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from minires import Tensor, nn, recompute
from minires.debug.recording import INPUT
from minires.debug.step import step
from minires.debug.trace_page import trace_html
from minires.inspect import plot_tape, summarize
from minires.ops import registry
from minires.ops.arithmetic import mul
from minires.ops.cases import all_cases
from minires.ops.forms import Formula, Values
from minires.ops.registry import describe, described
from minires.ops.reshape import reshape
from minires.tensor import watching

assert recompute  # where it is imported, it describes itself
EVERY = [pytest.param(known, id=known.name) for known in described()]
WITH_CASES = [pytest.param(known, id=known.name) for known in described() if known.cases]
# Options that a formula names only where they were given.
FORMULAS = {
    "batch_norm": {"running_mean", "running_var"}, "clip": {"low", "high"},
    "cross_entropy": {"weight", "ignore_index"}, "nll_loss": {"weight", "ignore_index"},
}  # fmt: skip
BLOCKS = {"recompute", "plan"}  # watched, it is a plain call: its operations are seen and not itself


class OneCase(nn.Module):
    """The last case of an operation as a layer; what it takes besides the first input are its parameters."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.case = all_cases()[op][-1 if op != "dropout" else 1]  # the last of dropout's drops nothing
        first, *others = self.case.arrays("float32").values()
        self.first = np.asarray(first)
        self.others = [nn.Parameter(array) for array in others]
        self.gain = nn.Parameter(np.ones((), np.float32))  # a model has at least one

    def forward(self, x: Tensor) -> Tensor:
        return self.case(x, *self.others)


class Whole(nn.Module):
    """A picture of a row of numbers, the layer, and a loss."""

    def __init__(self, layer: OneCase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(reshape(mul(x, self.layer.gain), self.layer.first.shape))
        return mul(y, np.random.default_rng(1).uniform(0.5, 1.5, y.shape).astype(y.dtype)).sum()

    @property
    def row(self):
        return self.layer.first.reshape(1, -1)


@pytest.mark.parametrize("known", EVERY)
def test_it_says_what_it_does(known):
    math, backward = known.formulas
    assert math and "d" in backward and "see the head" not in math + backward
    assert not set("{}?|") & set(math + backward)
    options = {"kernel": (3, 3), "stride": (2, 2), "groups": 2, "relu": True}
    for short in (False, True):
        label = known.called(options, (1, 8, 8, 64), ("x", "add"), short=short)
        assert label and "{" not in label and len(label) < 40
    assert known.arithmetic is not None or known.name in (*BLOCKS, INPUT)


def calls_of(known):
    """Every call of its cases, as those who show it have it."""
    for case in all_cases()[known.name]:
        seen = []
        with watching(seen.append):
            case(*(Tensor(array, requires_grad=True) for array in case.arrays().values()))
        for call in seen:
            if call.op == known.name:
                inputs = {name: x.data for name, x in call.inputs.items()}
                yield Values(inputs, call.options, call.y.shape, call.saved, result=known.result)


def mentioned(text):
    """The names of inputs in a formula or in that of a gradient, where dx is x."""
    return {name.removeprefix("d") for name in re.findall(r"[A-Za-z_]\w*", text)}


@pytest.mark.parametrize("known", WITH_CASES)
def test_what_is_said_of_a_call_is_of_its_inputs_and_options(known):
    if known.name in BLOCKS:
        return
    every = {name for call in calls_of(known) for name in call.inputs}
    optional = {name for call in calls_of(known) for name in call.options} & FORMULAS.get(known.name, set())
    for call in calls_of(known):
        said = known.said(call)
        for formula in (said.math, said.backward):
            absent = (every | optional) - set(call.inputs) - given_options(call)
            assert not mentioned(formula) & absent, (formula, absent)
            assert not set("{}?|") & set(formula) and all(line.strip() for line in formula.splitlines())
        assert set(call.inputs) <= mentioned(said.math), (said.math, list(call.inputs))
        assert set(call.inputs) <= mentioned(said.backward), (said.backward, list(call.inputs))
        for words in (said.english, said.chinese):
            assert all(words) and words.title[0].isupper() | (words is said.chinese), words
            assert all(sentence[-1] in ".。" for sentence in words[1:]), words
            assert not set("{}?|") & set("".join(words)), words


def given_options(call):
    """The options that were given something: neither none, nor nothing."""
    return {name for name, value in call.options.items() if not (value is None or value is False)}


@pytest.mark.parametrize("known", WITH_CASES)
def test_its_card_has_the_formula_and_its_numbers_are_explained(known):
    if known.name in BLOCKS:
        return
    model = Whole(OneCase(known.name))
    stepper = step(model, model.row)
    stop = stepper.find(op=known.name)
    card = repr(stop)
    said = known.said(stop.operation.values())
    first, *_ = re.split(" {3,}", said.math.splitlines()[0])
    assert first[:60] in " ".join(card.split()) and known.name in card.splitlines()[0]
    assert all(re.search(rf"^{name} ", card, re.M) for name in (*stop.operation.names, known.result))
    explained = stop.explain()
    assert explained.result == pytest.approx(explained.stored, rel=2e-5, abs=1e-6)
    back = repr(stepper.back())
    assert re.search(rf"^d{known.result} ", back, re.M)


@pytest.mark.parametrize("known", WITH_CASES)
def test_a_summary_and_a_plot_call_it_by_its_label(known, tmp_path):
    model, calls = Whole(OneCase(known.name)), []
    with watching(calls.append):
        loss = model(Tensor(model.row, requires_grad=True))
    call = next((call for call in calls if call.op == known.name), None)
    with np.errstate(all="ignore"):  # the picture of a summary is of zeros
        layers = summarize(model, model.row.shape[1:]).layers
    layer = next(layer for layer in layers if layer.name == "layer")
    if known.name in BLOCKS:
        assert layer.kind == "×"  # what is in the block
    elif call is not None and sum(one.op != "astype" for one in calls) == 5:  # nothing else is in the layer
        assert layer.kind == known.called(call.options, call.y.shape, call.inputs)
    else:
        assert layer.kind == "OneCase"
    loss = model(Tensor(model.row, requires_grad=True))
    plot_tape(loss, tmp_path / "tape.svg")
    assert f">{known.name}<" in (tmp_path / "tape.svg").read_text()


@pytest.mark.parametrize("known", WITH_CASES)
def test_the_trace_page_has_its_words_and_its_arithmetic(known):
    if known.name in BLOCKS:
        return
    model = Whole(OneCase(known.name))
    page = trace_html(model, model.row).decode()
    chunk = re.search(r'id="chunk0">([^<]*)<', page)[1]
    table = json.loads(zlib.decompress(base64.b64decode(chunk)))
    one = next(one for one in table["operations"] if one["op"] == known.name)
    operation = next(one for one in step(model, model.row).recording.operations if one.op == known.name)
    said = known.said(operation.values())
    assert table["said"][one["said"]] == {
        "forward": said.math, "backward": said.backward, "words": [list(said.english), list(said.chinese)],
    }  # fmt: skip
    of_one_picture = one["shape"][:1] == [1] and one["inputs"][0]["shape"][:1] == [1]
    assert one["arithmetic"] is not None or not of_one_picture
    if one["arithmetic"] and isinstance(known.arithmetic, Formula):
        names = [name for name, *_ in one["arithmetic"]["lines"]]
        assert known.result in names and any(name.startswith("d") for name in names)


def test_what_nobody_described_has_its_name():
    known = describe("mine_own")
    assert known.english.title == "Mine own" and known.called({}, (2,), ()) == "mine own"
    assert not known.works_by_channel and known.arithmetic is None


# ------------------------------------------------------------------------ what nobody outside may depend on


class Renamed(ast.NodeTransformer):
    """Every local variable of the functions of a file gets another name. Arguments are public."""

    def visit_FunctionDef(self, function):
        arguments = {one.arg for one in ast.walk(function.args) if isinstance(one, ast.arg)}
        inner = {one.arg for node in ast.walk(function) if isinstance(node, ast.FunctionDef | ast.Lambda)
                 for one in ast.walk(node.args) if isinstance(one, ast.arg)}  # fmt: skip
        nodes = list(ast.walk(function))
        local = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        local |= {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node is not function}
        local -= arguments | inner
        for node in nodes:
            if isinstance(node, ast.Name) and node.id in local:
                node.id = f"renamed_{node.id}"
            elif isinstance(node, ast.FunctionDef) and node.name in local:
                node.name = f"renamed_{node.name}"
        return function


def seen_by_others(model, x):
    """What summary, step cards, explanations, page and export make of a model."""
    stepper = step(model, x, [1])
    cards = [re.sub(r"took .* ms", "", repr(stop)) for stop in stepper]
    texts = [str(stop.explain()) for stop in stepper if not stop.backward and stop.number]
    page = trace_html(model, x, 1).decode()
    table = json.loads(zlib.decompress(base64.b64decode(re.search(r'id="chunk0">([^<]*)<', page)[1])))
    layers = summarize(model, x.shape[1:], memory=True).layers
    kinds = [(layer.kind, layer.macs, layer.saved) for layer in layers]
    operations = [(one["op"], one["label"], one["options"], one["arithmetic"]) for one in table["operations"]]
    return cards, texts, kinds, operations


@pytest.mark.parametrize("op", ["conv2d", "batch_norm"])
def test_local_variables_may_be_called_anything(op, monkeypatch):
    model = nn.Sequential(
        conv=nn.Conv2d(3, 4, 3, padding=1, relu=True, rng=np.random.default_rng(0)), norm=nn.BatchNorm2d(4),
        pool=nn.GlobalAvgPool2d(), dense=nn.Linear(4, 3, rng=np.random.default_rng(1)),
    )  # fmt: skip
    x = np.random.default_rng(2).standard_normal((1, 6, 6, 3)).astype(np.float32)
    before = seen_by_others(model, x)
    module = sys.modules[f"minires.ops.{op}"]
    monkeypatch.setitem(registry.OPERATIONS, op, registry.describe(op))
    tree = Renamed().visit(ast.parse(Path(module.__file__).read_text()))
    assert "renamed_" in ast.unparse(tree)
    space = {"__name__": module.__name__, "__file__": module.__file__, "__package__": module.__package__}
    exec(compile(ast.fix_missing_locations(tree), module.__file__, "exec"), space)
    monkeypatch.setattr("minires.nn.layers." + op, space[op])
    assert seen_by_others(model, x) == before
