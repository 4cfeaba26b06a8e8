"""The page's arithmetic in a browser: every number of every case of every operation, forward and back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, watched

from minires import nn
from minires.debug.trace_page import trace_html
from minires.ops.arithmetic import add, mul
from minires.ops.cases import all_cases
from minires.ops.forms import Products
from minires.ops.registry import Case, describe
from minires.ops.reshape import getitem, reshape
from minires.tensor import Tensor

OPS = [op for op in all_cases() if describe(op).arithmetic is not None]
# Every number that the page explains of the operations of one name: how many, and how far off the worst is,
# of the largest in its array.
WORK = """async (op) => {
  const { trace } = state;
  const found = { y: 0, dx: 0, parameters: 0, unknown: 0, worst: 0, where: "" };
  const largest = (data) => data.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-30);
  const note = (kind, explained, scale, where) => {
    if (explained.total === undefined) return void found.unknown++;
    found[kind]++;
    const off = Math.abs(explained.total - explained.recorded) / scale;
    if (!(off <= found.worst)) Object.assign(found, { worst: off, where: `${kind} ${where}` });
  };
  for (const operation of trace.operations.filter((one) => one.op === op)) {
    for (const way of ["forward", "backward"]) await trace.load(trace.needed(operation, way));
    const each = (one, channels, visit) => {
      const [height, width] = places(one);
      for (const channel of channels)
        for (let i = 0; i < height; i++) for (let j = 0; j < width; j++) visit(channel, i, j);
    };
    const known = withArithmetic(trace, operation) || operation.kept;
    const scale = largest(trace.array(operation.arrays.output).data);
    each(operation, known, (channel, i, j) =>
      note("y", explainOutput(trace, operation, channel, i, j), scale, [operation.number, channel, i, j]));
    operation.outgoing.forEach((gradient, input) => {
      if (gradient.array === undefined) return;
      const source = trace.source(operation, input);
      const of = largest(trace.array(gradient.array).data);
      each(source, source.kept.slice(0, source.shown), (channel, i, j) =>
        note("dx", explainOutgoing(trace, operation, input, channel, i, j), of,
             [operation.number, input, channel, i, j]));
    });
    for (const gradient of operation.parameters) {
      const of = largest(trace.array(gradient.array).data);
      gradient.numbers.forEach((_, at) =>
        note("parameters", explainParameter(trace, operation, gradient, at), of,
             [operation.number, gradient.label, at]));
    }
  }
  return found;
}"""


def of_one_picture(case: Case) -> dict[str, Any]:
    """The inputs of a case; the page shows one picture, so of several only the first is taken."""
    arrays = case.arrays("float32")
    first = next(iter(arrays.values()))
    if first.ndim == 4 or (first.ndim > 1 and isinstance(describe(case.op).arithmetic, Products)):
        one = (slice(1),) * (1 if first.ndim == 4 else first.ndim - 1)  # of a dense layer, one row
        return {name: array[one] if name != "w" and len(array) == len(first) and array.ndim == first.ndim
                else array for name, array in arrays.items()}  # fmt: skip
    return arrays


class EveryCase(nn.Module):
    """The cases of an operation side by side, their first inputs cut out of one row of numbers."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.cases, self.firsts, self.names = cases, [], []
        for place, case in enumerate(cases):
            first, *others = of_one_picture(case).items()
            self.firsts.append(first[1])
            self.names.append([f"p{place}_{name}" for name, _ in others])
            for name, (_, array) in zip(self.names[-1], others, strict=True):
                setattr(self, name, nn.Parameter(array))

    @property
    def row(self) -> Any:
        return np.concatenate([first.reshape(-1) for first in self.firsts])[None]

    def forward(self, x: Tensor) -> Tensor:
        start, total = 0, Tensor(np.zeros((), np.float32))
        for place, (case, first) in enumerate(zip(self.cases, self.firsts, strict=True)):
            part = getitem(x, (0, slice(start, start + first.size)))
            y = case(reshape(part, first.shape), *(getattr(self, name) for name in self.names[place]))
            weights = np.random.default_rng(place).uniform(0.5, 1.5, y.shape).astype(np.float32)
            total = add(total, mul(y, weights).sum())
            start += first.size
        return total


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.mark.parametrize("op", OPS)
def test_every_number_of_every_case(op, browser, tmp_path: Path):
    model = EveryCase(all_cases()[op])
    content = trace_html(model, model.row, name=op).decode()
    # A module keeps its functions to itself, and the policy allows this very script alone.
    content = re.sub("<meta http-equiv[^>]*>", "", content).replace('<script type="module">', "<script>")
    (tmp_path / "trace.html").write_text(content)
    page, errors, _ = watched(browser)
    page.goto((tmp_path / "trace.html").as_uri())
    page.wait_for_selector('main[data-event="0"]', timeout=20_000)
    found = page.evaluate(WORK, op)
    page.context.close()
    assert errors == [] and found["unknown"] == 0, found
    assert found["y"] > 0 and found["dx"] > 0
    assert found["worst"] < 2e-5, found

