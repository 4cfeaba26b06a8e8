"""What a user's own operation gets: undescribed its name everywhere, and ten lines above it give the rest."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from browser import chromium, screenshot, watched

from minires import nn
from minires.debug.step import step
from minires.debug.trace_page import trace, trace_html
from minires.errors import ConfigError, MiniresError
from minires.inspect import plot, plot_tape, summarize
from minires.ops import registry
from minires.ops.forms import Formula
from minires.ops.registry import Words, operation
from minires.ops.relu import relu
from minires.tensor import Tensor, record


def squash(x: Tensor) -> Tensor:
    """An operation that nobody described."""
    y = x.data / (1 + abs(x.data))
    return record("squash", y, inputs={"x": x}, options={"power": 1},
                  backward=lambda dy: (dy * (1 - abs(y)) ** 2,))  # fmt: skip


@pytest.fixture
def bend():
    """An operation that is described in a file of a user's own; afterwards it is gone again."""

    @operation(
        arithmetic=Formula("""
            y = x / (sharp + abs(x))
            dx = dy * (1 - abs(y)) ** 2 / sharp
        """),
        english=Words("Bend", "Every number is bent towards 1.", "Little comes back from large numbers."),
        label="bend",
        role="small",
        onnx="Softsign",
    )
    def bend(x: Tensor, sharp: float = 1.0) -> Tensor:
        """Bend numbers."""
        y = x.data / (sharp + abs(x.data))
        return record("bend", y, inputs={"x": x}, options={"sharp": sharp}, saved={"y": y},
                      backward=lambda dy: (dy * (1 - abs(y)) ** 2 / sharp,))  # fmt: skip

    yield bend
    del registry.OPERATIONS["bend"]


class Net(nn.Module):
    """A network with a user's own layer in it, which is one operation."""

    def __init__(self, own) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, rng=np.random.default_rng(0))
        self.leaky = nn.LeakyReLU(slope=0.2)
        self.own = nn.layer_of(own, "Own")()
        self.pool = nn.GlobalAvgPool2d()
        self.dense = nn.Linear(4, 3, rng=np.random.default_rng(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.pool(self.own(self.leaky(self.conv(x)))))


def test_the_name_of_a_built_in_one_is_refused_wherever_the_layer_runs():
    names = [one.name for one in registry.described()]
    assert {"relu", "conv2d", "round", "input"} <= set(names)
    for name in (*names, "leaf"):
        own = lambda x, name=name: record(name, x.data, inputs={"v": x}, backward=lambda dy: (dy,))  # noqa: E731
        for use in (lambda own=own: step(Net(own), X, [1]), lambda own=own: summarize(Net(own), (8, 8, 3))):
            refused = f'{name}: this name belongs to an operation of minires.*such as record."own_{name}"'
            with pytest.raises(MiniresError, match=refused):
                use()


X = np.random.default_rng(2).standard_normal((1, 8, 8, 3)).astype(np.float32)


def test_one_that_nobody_described_steps_prints_and_is_drawn(tmp_path):
    model = Net(squash)
    stepper = step(model, X, [1])
    card = repr(stepper.goto("own"))
    lines = card.splitlines()
    assert lines[0].endswith("forward: squash own") and "  power 1" in lines
    assert re.search(r"^x +1x8x8x4 ", card, re.M) and re.search(r"^y +1x8x8x4 ", card, re.M)
    assert re.search(r"^dx +1x8x8x4 ", repr(stepper.back()), re.M)
    with pytest.raises(ConfigError, match="squash cannot be explained number by number"):
        stepper.goto(3).explain()
    kinds = {layer.name: layer.kind for layer in summarize(model, (8, 8, 3)).layers}
    assert kinds == {"conv": "conv 3x3", "leaky": "leaky ReLU", "own": "squash",
                     "pool": "global average pool", "dense": "dense"}  # fmt: skip
    plot(model, (8, 8, 3), tmp_path / "model.svg")
    drawing = (tmp_path / "model.svg").read_text()
    assert "3x3, 4" in drawing and "leaky ReLU" in drawing and "squash" in drawing
    plot_tape(model(Tensor(X)).sum(), tmp_path / "tape.svg")
    assert "squash" in (tmp_path / "tape.svg").read_text()


def test_one_that_is_described_is_explained(bend):
    stepper = step(Net(bend), X, [1])
    event = stepper.goto("own")
    assert {"  y = x / (sharp + abs(x))", "  sharp 1.0"} <= set(repr(event).splitlines())
    text = str(event.explain(i=2, j=3, c=1))
    value = float(event.operation.inputs[0].value[0, 2, 3, 1])
    x, y = f"{value:.6g}", f"{value / (1 + abs(value)):.6g}"
    assert f"  y = x / (sharp + abs(x)) = {x} / (1 + abs({x})) = {y}" in text.splitlines()
    assert "Math: y = x / (sharp + abs(x))\nBackward: dx = dy * (1 - abs(y)) ** 2 / sharp" in bend.__doc__
    assert [layer.kind for layer in summarize(Net(bend), (8, 8, 3)).layers][2] == "bend"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def opened(browser, content: bytes, folder: Path):
    (folder / "trace.html").write_bytes(content)
    page, errors, _ = watched(browser, viewport={"width": 1400, "height": 1000})
    page.goto((folder / "trace.html").as_uri())
    page.wait_for_selector('main[data-event="0"]', timeout=20_000)
    return page, errors


def go(page, event: int) -> None:
    page.locator("#position").fill(str(event))
    page.wait_for_selector(f'main[data-event="{event}"]')


def test_the_page_of_one_that_nobody_described(browser, tmp_path):
    page, errors = opened(browser, trace_html(Net(squash), X, 1), tmp_path)
    go(page, 3)
    assert page.locator("main h2").inner_text().startswith("Squash own squash")
    page.locator('[data-panel="y"] .large canvas').hover()
    assert "shows the recorded value only" in page.locator("#explanation").inner_text()
    page.keyboard.press("b")
    page.wait_for_selector("main h2.backward")
    assert errors == []
    page.context.close()


def test_the_page_of_one_that_is_described(bend, browser, tmp_path):
    trace(Net(bend), X, 1, out=tmp_path / "own.html")
    page, errors = opened(browser, (tmp_path / "own.html").read_bytes(), tmp_path)
    for event, formula in [(2, "y = x if x > 0 else slope * x"), (3, "y = x / (sharp + abs(x))")]:
        go(page, event)
        assert page.locator(".formula").inner_text() == formula
        page.locator('[data-panel="y"] .large canvas').hover()
        total, recorded = (float(page.locator(f"[data-result={name}]").inner_text())
                           for name in ("total", "recorded"))  # fmt: skip
        assert total == pytest.approx(recorded, rel=1e-4, abs=1e-6)
    assert page.locator("main h2").inner_text().startswith("Bend own bend")
    assert page.locator(".does").inner_text() == "Every number is bent towards 1."
    screenshot(page, "own_operation", tmp_path)
    page.keyboard.press("b")
    page.wait_for_selector("main h2.backward")
    page.locator('[data-panel="dx"] .large canvas').hover()
    assert page.locator("[data-result=total]").count() == 1
    assert errors == []
    page.context.close()


@pytest.mark.parametrize("text", ["y = q*foo(x)", "y = = x"])
def test_a_formula_that_cannot_be_read_is_refused_where_it_is_written(text):
    with pytest.raises(ConfigError, match="formula"):
        Formula(text)


@pytest.mark.parametrize(
    ("arithmetic", "words"), [("y = x", "write a formula as Formula"), (Formula("z = x"), "gives z, but not")]
)
def test_arithmetic_that_is_no_formula_of_the_result_is_refused(arithmetic, words):
    with pytest.raises(ConfigError, match=words):
        operation("never", math="y = x", backward="dx = dy", arithmetic=arithmetic)(lambda x: x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_formula_that_is_not_what_is_computed_is_noticed(dtype):
    x = np.linspace(1, 2, 6).reshape(1, 6).astype(dtype)
    right = step(relu, x, [0]).find(op="relu").explain()
    assert "these differ" not in str(right)
    wrong = dataclasses.replace(right, result=right.result * (1 + 1e-2))
    assert wrong.differs and "these differ: the formula is not what the operation computes" in str(wrong)
