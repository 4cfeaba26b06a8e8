"""Check a backward pass against numeric gradients, in a way that cannot be fooled.

With a random array dy as upstream gradient, the gradient of an input element x must be

    dx = sum(dy * (f(x + h) - f(x - h))) / (2 h)

up to rounding. The ways in which such a check is usually fooled, and what is done here:

* an upstream gradient of all ones (a batch norm that returns zeros passes): dy is random;
* float32, where rounding hides everything: float64 only;
* a tolerance larger than the gradients: an error is measured against the gradient of that element itself;
* rounding of a large output, beside which a gradient is not seen: the noise that it makes is estimated from
  the outputs that an element changes, and where it hides the gradient, larger steps are tried; what they do
  not show either is reported as undecided, and the check has not passed;
* an element where f has a kink (relu at zero): a smaller step is tried, then the slopes on both sides are
  compared, and the report says so;
* a function that changes its inputs or gives another result each time: it is run again and compared;
* an input that has no influence at all: the report says that nothing was learned about it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ConfigError, MiniresError, ShapeError, as_seed, number, whole
from minires.tensor import Tensor, no_grad

Inputs = Mapping[str, Any] | Sequence[Any]
_EPS = float(np.finfo(np.float64).eps)
_ROUNDING = 20.0  # roundings an output element may carry; a deep network carries more, and has more to show
_LARGER = (1e2, 1e4)  # times the step, where rounding hides what the step shows
_SMALL = 1e-3  # of what others are: a gradient that comes of larger parts, or a noise that hides nothing


class GradcheckError(MiniresError):
    """A gradient is wrong, or the function cannot be checked. ``report`` holds the details."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


@dataclass(frozen=True)
class Element:
    """One element of one input: its gradient as the tape gives it and as finite differences give it.

    ``error`` is relative, between 0 and about 1; ``kink`` says that the slopes on both sides differ.
    ``noise`` is how large a numeric gradient may be by rounding alone; ``undecided`` says that this hides it.
    """

    input: str
    index: tuple[int, ...]
    analytic: float
    numeric: float
    error: float
    kink: bool = False
    noise: float = 0.0
    undecided: bool = False

    def __str__(self) -> str:
        place = f"{self.input}[{', '.join(map(str, self.index))}]" if self.index else self.input
        kink = "; the function has a kink here, move the input away from it" if self.kink else ""
        error = f"relative error {self.error:.1e}{kink}"
        if self.undecided:
            error = f"of which rounding makes up to {self.noise:.1e}"
        return f"{place}: analytic {self.analytic:.9g}, numeric {self.numeric:.9g}, {error}"


@dataclass(frozen=True)
class InputReport:
    """What was found about one input: every element that was checked."""

    name: str
    shape: tuple[int, ...]
    elements: tuple[Element, ...]
    tolerance: float

    @property
    def worst(self) -> Element | None:
        return max(self.elements, key=lambda one: (one.error > self.tolerance, one.undecided, one.error),
                   default=None)  # fmt: skip

    @property
    def failed(self) -> int:
        """How many elements are wrong."""
        return sum(element.error > self.tolerance for element in self.elements)

    @property
    def undecided(self) -> int:
        """Of how many elements rounding hides whether they are right."""
        return sum(element.undecided for element in self.elements)

    @property
    def blind(self) -> bool:
        """The input has no influence on the output, so the check says nothing about its gradient but zero."""
        return all(abs(element.numeric) <= element.noise for element in self.elements)


@dataclass(frozen=True)
class Report:
    """The result of a gradient check: ``ok``, the ``worst`` element, all of them, and a table as ``str``."""

    inputs: tuple[InputReport, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems and not any(part.failed or part.undecided for part in self.inputs)

    @property
    def worst(self) -> Element | None:
        found = [part.worst for part in self.inputs if part.worst is not None]
        return max(found, key=lambda element: element.error, default=None)

    def __str__(self) -> str:
        lines = [f"gradcheck {'passed' if self.ok else 'FAILED'}"]
        lines += [f"  {problem}" for problem in self.problems]
        for part in self.inputs:
            blind = "; it has no influence on the output" if part.blind else ""
            checked = f"{part.failed} of {len(part.elements)} checked elements are wrong"
            hidden = f", {part.undecided} cannot be decided, as the output is too large beside them"
            lines.append(f"  {part.name} {part.shape}: {checked}{hidden if part.undecided else ''}{blind}")
            if part.worst is not None:
                lines.append(f"    worst {part.worst}")
        return "\n".join(lines)


def gradcheck(
    fn: Callable[..., Tensor],
    inputs: Inputs,
    *,
    parameters: Iterable[tuple[str, Tensor]] = (),
    step: float = 1e-6,
    tolerance: float = 1e-5,
    elements: int | None = None,
    seed: int = 0,
    raise_on_fail: bool = True,
) -> Report:
    """Compare the gradients of ``fn(*inputs)`` with central differences, element by element, in float64.

    ``inputs`` are arrays, tensors or numbers, in a sequence or in a mapping that names them; each is copied
    to float64. ``parameters`` are (name, tensor) pairs that ``fn`` uses by itself, for a whole network
    ``model.named_parameters()``; they must be float64 already (``model.astype("float64")``), and are changed
    and put back, and their ``.grad`` is lost. At most ``elements`` elements of each are checked, chosen by
    ``seed`` (all of them if None). ``fn`` must be deterministic: a dropout needs a fresh generator in each
    call. An element whose gradient rounding hides, beside an output that is too large, is undecided.

    Math: see the head of this file.
    Raises: GradcheckError with the report if something is wrong or undecided and ``raise_on_fail`` is set;
    ShapeError, ConfigError for inputs and options that are none.

    >>> gradcheck(lambda x: x * x, [[1.0, 1e3, 1e5]]).ok
    True
    """
    if hasattr(inputs, "shape"):
        raise ShapeError("gradcheck takes a list of inputs, not one array; give [x]")
    if not callable(fn) or not isinstance(inputs, Iterable) or isinstance(inputs, str):
        raise ConfigError("gradcheck takes a function, and its inputs in a list or by name")
    step, tolerance = number("step", step, above=0), number("tolerance", tolerance, above=0)
    elements = None if elements is None else whole("elements", elements)
    parameters = list(parameters)
    if not all(isinstance(one, tuple) and len(one) == 2 for one in parameters):
        raise ConfigError("gradcheck takes parameters as (name, tensor) pairs: model.named_parameters()")
    rng = np.random.default_rng(as_seed(seed))
    named = dict(inputs) if isinstance(inputs, Mapping) else {f"input {i}": x for i, x in enumerate(inputs)}
    leaves = {name: _leaf(x, name) for name, x in named.items()}
    arguments = list(leaves.values())
    leaves.update(parameters)
    report = _check(lambda: fn(*arguments), leaves, step, tolerance, elements, rng)
    if raise_on_fail and not report.ok:
        raise GradcheckError(report)
    return report


def _leaf(x: Any, name: str) -> Tensor:
    data = x.data if isinstance(x, Tensor) else x
    xp = np if isinstance(data, int | float | list | tuple) else backend.array_module(data)
    return Tensor(xp.array(data, dtype=np.float64), requires_grad=True, name=name)


def _check(
    run: Callable[[], Tensor],
    leaves: dict[str, Tensor],
    step: float,
    tolerance: float,
    elements: int | None,
    rng: np.random.Generator,
) -> Report:
    narrow = [f"{name} is {leaf.dtype}" for name, leaf in leaves.items() if leaf.dtype != np.float64]
    if narrow:
        return Report((), (f"only float64 can be checked, but {', '.join(narrow)}; convert with astype",))
    before = {name: leaf.data.copy() for name, leaf in leaves.items()}
    y = run()
    problem = _unfit(y)
    if problem:
        return Report((), (problem,))
    dy = backend.array_module(y.data).asarray(_upstream(rng, y.shape))
    analytic = _gradients(y, dy.copy(), leaves)
    y_again, dy_again = run(), dy.copy()
    again = _gradients(y_again, dy_again, leaves)

    problems = [
        f"{name} was changed in place by the function or its backward"
        for name, leaf in leaves.items()
        if not _same(leaf.data, before[name])
    ]
    if not _same(dy, dy_again):
        problems.append("a backward changed the upstream gradient in place")
    if problems:
        return Report((), tuple(problems))
    if not _same(y.data, y_again.data):
        return Report((), ("the function gave two results for the same inputs; it must be deterministic",))
    for name in leaves:
        if not _same(analytic[name], again[name], 1e-10):
            problems.append(f"two backward passes gave two gradients of {name}")

    moved = {name: _Moved(run, y.data, dy, name, leaf.data) for name, leaf in leaves.items()}
    parts = [
        InputReport(
            name,
            leaf.shape,
            tuple(_elements(moved[name], analytic[name], step, tolerance, elements, rng)),
            tolerance,
        )
        for name, leaf in leaves.items()
    ]
    return Report(tuple(_decided(parts)), tuple(problems))


@dataclass
class _Moved:
    """An input ``x`` of which one element is moved, and what sum(dy * y) does then."""

    run: Callable[[], Tensor]
    y: Array
    dy: Array
    name: str
    x: Array

    def start(self, index: tuple[int, ...]) -> None:
        """Move this element from now on; ``changed`` are the outputs that were seen to change."""
        self.index, self.changed = index, False

    def slope(self, up: float, down: float) -> tuple[float, float]:
        """The slope between x[index] + up and x[index] - down, and the sum of the sizes of its parts."""
        middle = float(self.x[self.index])
        with no_grad():
            self.x[self.index] = middle + up
            high = self.run().data.copy()  # the output may be a view of x
            self.x[self.index] = middle - down
            rise = self.dy * (high - self.run().data)
        self.x[self.index] = middle
        self.changed = self.changed | (rise != 0)
        apart = (middle + up) - (middle - down)
        return float(rise.sum()) / apart, float(abs(rise).sum()) / apart

    def noise(self, step: float) -> float:
        """How large a slope rounding alone makes, of the outputs that change; of all, if none seems to.

        Each output carries a few roundings of its own size; they add up as random ones do.
        """
        size = self.dy * self.y * (self.changed if np.any(self.changed) else 1)
        return _ROUNDING * _EPS * math.sqrt(float((size * size).sum())) / step


def _elements(
    moved: _Moved,
    analytic: Array,
    step: float,
    tolerance: float,
    elements: int | None,
    rng: np.random.Generator,
) -> Iterator[Element]:
    """Every element of an input (or some of them) with its gradient, numeric and analytic."""
    x = moved.x
    chosen = np.arange(x.size)
    if elements is not None and elements < x.size:
        chosen = np.sort(rng.choice(x.size, elements, replace=False))
    for flat in chosen:
        place = tuple(int(i) for i in np.unravel_index(flat, x.shape))
        moved.start(place)
        a, h = float(analytic[place]), step * max(1.0, abs(float(x[place])))
        n, parts = moved.slope(h, h)

        def error(n: float, noise: float = 0.0, a: float = a, parts: float = parts) -> float:
            """Relative. What is left of parts that cancel out is measured against them; a difference of the
            size of the noise comes out as the tolerance."""
            relative = abs(a - n) / max(abs(a), abs(n), _SMALL * parts, noise / tolerance, 1e-300)
            return relative if np.isfinite(relative) else float("inf")

        noise, kink = moved.noise(h), False
        if error(n) > tolerance:  # it is wrong, or hidden by rounding, of which a larger step shows less
            n, noise = _clearest(moved, h, n, lambda n: error(n) <= tolerance)
        wrong = error(n, noise)
        if wrong > tolerance:
            # A kink within h, but not at x itself, is out of reach of a smaller step.
            small = h / 30
            (nearer, _), more_noise = moved.slope(small, small), moved.noise(small)
            if error(nearer, more_noise) <= tolerance and more_noise < abs(a - n):
                n, noise, wrong = nearer, more_noise, error(nearer, more_noise)
            else:
                (right, _), (left, _) = moved.slope(small, 0.0), moved.slope(0.0, small)
                kink = abs(right - left) > 1e-3 * max(abs(right), abs(left)) + 2 * more_noise
        hidden = wrong <= tolerance < error(n)
        yield Element(moved.name, place, a, n, wrong, kink, noise, hidden)


def _clearest(moved: _Moved, h: float, n: float, right: Callable[[float], bool]) -> tuple[float, float]:
    """Of the slopes at h and at larger steps the first that is right, else the least doubtful; its doubt."""
    tried = [(h, n)]
    with np.errstate(all="ignore"):  # they may leave the numbers for which the function is defined
        tried += [(h * times, moved.slope(h * times, h * times)[0]) for times in _LARGER]
    noises = [moved.noise(step) for step, _ in tried]  # now that it is known which outputs change
    # A larger step takes a curve for a line, which shows in how far the slopes of two steps are apart.
    bends = [0.0, *(abs(after - before) for (_, before), (_, after) in itertools.pairwise(tried))]
    found = [(n, noise + bend) for (_, n), noise, bend in zip(tried, noises, bends, strict=True)]
    for one in found:
        if right(one[0]):
            return one
    return min(found, key=lambda one: one[1] if np.isfinite(one[1]) else np.inf)


def _decided(parts: list[InputReport]) -> Iterator[InputReport]:
    """Of what is hidden by rounding, only what might be as large as the gradients that are seen is undecided:
    what is as small as that beside all others is zero."""
    every = [one for part in parts for one in part.elements]
    largest = max(
        (abs(one.numeric) for one in every if abs(one.numeric) > one.noise / _SMALL), default=np.inf
    )
    for part in parts:
        elements = tuple(
            replace(one, undecided=one.undecided and one.noise > _SMALL * largest) for one in part.elements
        )
        yield replace(part, elements=elements)


def _upstream(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Random numbers of both signs that are neither near zero nor all alike."""
    return rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape)


def _gradients(y: Tensor, dy: Array, leaves: dict[str, Tensor]) -> dict[str, Array]:
    for leaf in leaves.values():
        leaf.grad = None
    y.backward(dy)
    found = {}
    for name, leaf in leaves.items():
        found[name] = backend.array_module(leaf.data).zeros_like(leaf.data)
        if leaf.grad is not None:
            found[name] += leaf.grad
        leaf.grad = None
    return found


def _unfit(y: Any) -> str | None:
    if not isinstance(y, Tensor):
        return f"the function must return a Tensor, not {type(y).__name__}"
    if y.dtype != np.float64:
        return f"the function returned {y.dtype}; in float64 inputs must give a float64 output"
    if not y.requires_grad:
        return "no path leads from the output back to an input: was it computed from .data, or under no_grad?"
    if not bool(backend.array_module(y.data).isfinite(y.data).all()):
        return "the output is not finite; choose inputs for which the function is defined"
    return None


def _same(a: Array, b: Array, relative: float = 0.0) -> bool:
    """Equal, NaN for NaN, but for ``relative`` times the largest number."""
    xp = backend.array_module(a)
    largest = float(abs(xp.nan_to_num(b, posinf=0.0, neginf=0.0)).max()) if b.size else 0.0
    return bool(xp.allclose(a, b, rtol=0.0, atol=relative * largest, equal_nan=True))
