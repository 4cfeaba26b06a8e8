"""The cases on which every operation is checked, as each declares them, and the check of its gradients.

``python -m minires gradcheck`` checks the gradients of these, and the tests hold the same cases against other
implementations. An operation is never checked alone: a layer stands before it and one after it, so that its
gradient must fit into a network (see :func:`surrounded`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires import backend
from minires.errors import ConfigError, nearest
from minires.gradient_check import Report, gradcheck
from minires.ops import arithmetic
from minires.ops.concat import concat
from minires.ops.registry import OPERATIONS, Case, described
from minires.ops.reshape import reshape, transpose
from minires.tensor import Tensor


def all_cases() -> dict[str, list[Case]]:
    """The cases of every operation that has some, by its name."""
    found = {known.name: list(known.bound_cases()) for known in described()}
    return {name: cases for name, cases in found.items() if cases}


# -------------------------------------------------------------------------------------------- the check


@dataclass(frozen=True)
class Row:
    """The result for one case: its worst relative error over all implementations, and the report on it."""

    op: str
    case: str
    error: float
    ok: bool
    seconds: float
    report: Report


def surrounded(case: Case, arrays: Mapping[str, Any]) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """The operation inside a small network, and that network's inputs.

    Before it stands a scaling of each input, so that its gradients must travel on. Each scaled input is used
    a second time, so that its gradient is a sum: an operation that gives away an array which it still needs
    is caught. After it stand a transposition and a product, so that the gradient that comes in is random and
    its memory not in order.
    """
    rng = np.random.default_rng(1)
    xp = backend.array_module(*arrays.values())
    # Powers of two, so that the operation gets exactly the inputs of the case.
    scales = {n: xp.asarray(rng.choice([-2.0, -0.5, 0.5, 2.0], a.shape)) for n, a in arrays.items()}

    def network(*inputs: Tensor) -> Tensor:
        xs = [arithmetic.mul(u, scale) for u, scale in zip(inputs, scales.values(), strict=True)]
        y = transpose(case(*xs))
        weights = xp.asarray(np.random.default_rng(2).uniform(0.5, 1.5, y.shape))
        parts = [arithmetic.mul(y, weights), *(arithmetic.mul(x, x) for x in xs)]
        return concat([reshape(part, (-1,)) for part in parts])

    return network, {name: array / scales[name] for name, array in arrays.items()}


def check(
    case: Case, *, elements: int | None = None, raise_on_fail: bool = False, device: str = "cpu"
) -> Report:
    """Check the gradients of one case, with every implementation there is; the worst report.

    Of the reference implementation every element is measured; of the fast one, of each input, at most
    ``elements``.
    """
    arrays = {name: backend.to_device(array, device) for name, array in case.arrays().items()}
    network, inputs = surrounded(case, arrays)
    reports = []
    for implementation, most in ((nullcontext, elements), (backend.reference, None)):
        with implementation():
            reports.append(gradcheck(network, inputs, elements=most, raise_on_fail=raise_on_fail))
    return max(reports, key=lambda report: (not report.ok, report.worst.error if report.worst else 0.0))


def check_all(names: Iterable[str] | None = None) -> Iterator[Row]:
    """Check the gradients of the operations in ``names``, or of all, a row per case.

    Raises: ConfigError for an unknown operation, with the nearest name.
    """
    known = all_cases()
    wanted = list(known) if names is None else list(names)
    for name in wanted:
        if name not in known:
            if (there := OPERATIONS.get(name)) is not None:
                why = there.unchecked or "declare some with cases="
                raise ConfigError(f"gradcheck: {name!r} has no cases on which it could be checked: {why}")
            raise ConfigError(f"gradcheck: there is no operation {name!r}; {nearest(name, known)}")
    return _rows([case for name in wanted for case in known[name]])


def _rows(cases: Iterable[Case]) -> Iterator[Row]:
    for case in cases:
        start = time.perf_counter()
        report = check(case)
        error = report.worst.error if report.worst else float("inf")
        yield Row(case.op, case.name, error, report.ok, time.perf_counter() - start, report)
