"""What an operation says of itself, beside it: its formulas, its words, its arithmetic, its cases.

    @operation(
        arithmetic=Formula("y = x if x > 0 else slope * x; dx = dy if y > 0 else slope * dy"),
        label="leaky ReLU",
        cases=_cases,
    )
    def leaky_relu(x, *, slope=0.01):
        ...
        return record("leaky_relu", y, inputs={"x": x}, options={"slope": slope}, backward=backward)

That is all that anybody needs to know of an operation: gradient check, summary, plot, step cards, trace page
and ONNX export read its description here, and none of them knows an operation by name. An operation that
nobody described is called by its name, and its numbers are shown as they were recorded: a function that
ends in :func:`minires.record` is one already.
"""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from minires.errors import ConfigError, one_of
from minires.ops import call_texts
from minires.ops.forms import Form, Formula, Values
from minires.ops.onnx_graph import Graph
from minires.ops.plot_labels import filled
from minires.registry import Registry
from minires.tape import RESERVED
from minires.tensor import Call, Tensor

F = TypeVar("F", bound=Callable[..., Any])
Make = Callable[[np.random.Generator], Any]
Shape = tuple[int, ...]
ROLES = ("box", "small", "silent")


class Words(NamedTuple):
    """A title, and one sentence for each way: what the operation does, and what its way back does."""

    title: str
    forward: str = ""
    backward: str = ""


class Said(NamedTuple):
    """What an operation says of one call: its formulas on both ways, and its words in both languages."""

    math: str
    backward: str
    english: Words
    chinese: Words


class OnnxWriter(Protocol):
    """Writes a call of an operation as nodes of an ONNX graph, and gives the name of its result there."""

    def __call__(self, graph: Graph, call: Call) -> str: ...


@dataclass(frozen=True)
class Description:
    """All that is known of an operation, and the decorator of its function. What is not given has a meaning,
    too; only the formulas must be.

    ``name`` is the one that is given to ``record``; that of the function, if left out. ``math`` and
    ``backward`` are the formulas; ``result`` is what they call the result. They are put into the docstring of
    the function, after its first sentence, where ``help`` shows them. ``arithmetic`` says how each number is
    computed (see :mod:`minires.ops.forms`), so that it can be explained; where that is a ``Formula``, its
    lines are the formulas if no others are given. ``english`` and ``chinese`` are the words of cards and
    pages.

    Formulas and words are said of one call, by ``said``: of a ``Formula`` the lines that this call needs, of
    a text the parts that hold there, "y = x @ w{b? + b}" (see :mod:`minires.ops.call_texts`). ``facts`` adds
    names that their conditions may ask for.

    ``moves`` names those options, arrays, that a call changes in place unless its formula reads them: a card
    says that they are shown as it has left them.

    ``label`` is its name in a summary, ``short`` the one in a plot and where there is little room; options
    may stand in both, see :mod:`minires.ops.plot_labels`. ``role`` says what a plot makes of it: "box" draws
    one for it, "small" names it in the box before it, "silent" leaves it out. Where branches meet in it, the
    plot writes ``join``.

    ``channelwise`` says whether channel c of the result is made of channel c of each input that has as many;
    its arithmetic knows that by itself.

    ``onnx`` is the ONNX operator that does the same element by element, or a function that writes it.

    ``cases`` gives the calls on which it is checked; ``unchecked`` says why there are none.

    Raises (as decorator): ConfigError if a formula is missing, or there is an operation of this name in
    another module.
    """

    name: str = ""
    _: KW_ONLY
    math: str = ""
    backward: str = ""
    result: str = "y"
    arithmetic: Form | None = None
    english: Words = Words("")
    chinese: Words = Words("")
    facts: Callable[[Values], call_texts.Facts] | None = None
    moves: Collection[str] = ()
    label: str = ""
    short: str = ""
    role: str = "box"
    join: str = ""
    channelwise: bool | None = None
    onnx: str | OnnxWriter | None = None
    cases: Callable[[], Iterable[Case]] | None = None
    unchecked: str = ""
    function: Callable[..., Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):  # @operation without parentheses
            shown = getattr(self.name, "__name__", type(self.name).__name__)
            raise ConfigError(f"write @operation(math=..., backward=...) above {shown}, with parentheses")
        if self.arithmetic is not None and not hasattr(self.arithmetic, "number"):
            raise ConfigError(
                f"arithmetic of {self.name or 'an operation'} is {self.arithmetic!r}; "
                "write a formula as Formula(\"y = ...\")"
            )

    def __call__(self, function: F) -> F:
        known = declare(replace(self, name=self.name or function.__name__, function=function))
        first, _, rest = inspect.cleandoc(function.__doc__ or "").partition("\n\n")
        formulas = map(_formula, ("Math", "Backward"), known.formulas)
        function.__doc__ = "\n\n".join(part for part in (first, "\n".join(formulas), rest) if part)
        return function

    @property
    def works_by_channel(self) -> bool:
        """Whether its channels stand for the same as those of its inputs."""
        if self.channelwise is not None:
            return self.channelwise
        return self.arithmetic is not None and self.arithmetic.channelwise

    def called(
        self, options: Mapping[str, Any], shape: Shape, inputs: Collection[str], *, short: bool = False
    ) -> str:
        """Its label for one call."""
        return filled(self.short if short else self.label, options, shape, inputs)

    @property
    def formulas(self) -> tuple[str, str]:
        """The formulas of both ways for all calls, as `help` shows them."""
        math, backward = map(call_texts.of_all, (self.math, self.backward))
        lines = self.arithmetic.texts(self.result) if isinstance(self.arithmetic, Formula) else ("", "")
        return math or lines[0], backward or lines[1]

    def said(self, call: Values) -> Said:
        """Its formulas and words for one call."""
        facts = call_texts.facts_of(call, self.facts)

        def words(all_calls: Words) -> Words:
            return Words(*(call_texts.of_call(text, facts) for text in all_calls))

        math, backward = (call_texts.of_call(text, facts) for text in (self.math, self.backward))
        lines = self.arithmetic.texts(self.result, call) if isinstance(self.arithmetic, Formula) else ("", "")
        return Said(math or lines[0], backward or lines[1], words(self.english), words(self.chinese))

    def reads(self, call: Values) -> dict[str, Any]:
        """The arrays that a call reads besides its inputs: running statistics, a mask."""
        return self.arithmetic.reads(call) if isinstance(self.arithmetic, Formula) else {}

    def bound_cases(self) -> Iterator[Case]:
        """Its cases, each of which knows what to call."""
        for case in self.cases() if self.cases else ():
            function = self.function if case.call is None else functools.partial(case.call, self.function)
            yield replace(case, op=self.name, fn=function)


operation = Description  # as a decorator it reads better so: @operation(math="y = max(x, 0)", ...)

OPERATIONS: Registry[Description] = Registry("operation", {})


def declare(known: Description) -> Description:
    """Describe what is no plain function as an operation; raises as the decorator does."""
    one_of(f"role of {known.name}", known.role, ROLES)
    for label in (known.label, known.short):
        try:
            filled(label, {}, (), ())
        except (KeyError, ValueError, IndexError) as error:
            raise ConfigError(f"label {label!r} of {known.name}: there is no {error} to put in") from None
    if isinstance(known.arithmetic, Formula) and known.result not in known.arithmetic.trees:
        given = ", ".join(known.arithmetic.trees) or "nothing"
        raise ConfigError(
            f"arithmetic of {known.name}: the formula gives {given}, but not the result {known.result}; "
            "write a "
            f"line {known.result} = ..., or give result="
        )
    texts = [textwrap.dedent(text).strip() for text in (known.math, known.backward)]
    for text in (*texts, *known.english, *known.chinese):
        call_texts.check(text)
    known = _with_words(replace(known, math=texts[0], backward=texts[1]))
    if not known.name or not all(known.formulas):
        raise ConfigError(f"operation {known.name!r}: give its name and both formulas, math and backward")
    OPERATIONS.add(known.name, known, maker=known.function)
    if known.function is not None and known.function.__module__.startswith("minires."):
        RESERVED.add(known.name)
    return known


def _formula(heading: str, text: str) -> str:
    """A formula in a docstring; one of several lines is indented."""
    lines = text.splitlines()
    return f"{heading}: {text}" if len(lines) == 1 else "\n    ".join([f"{heading}:", *lines])


def _with_words(known: Description) -> Description:
    """Its name in the place of what was not said."""
    plain = known.name.replace("_", " ")
    english = known.english if known.english.title else known.english._replace(title=plain.capitalize())
    label = known.label or plain
    return replace(
        known, english=english, chinese=known.chinese if known.chinese.title else english, label=label,
        short=known.short or label,
    )  # fmt: skip


def describe(name: str) -> Description:
    """The description of an operation; of one that nobody described, what its name alone says."""
    return OPERATIONS.get(name) or _with_words(Description(name=name))


def described() -> tuple[Description, ...]:
    """All operations that are described, in the order of their declaration."""
    return tuple(OPERATIONS.values())


# ------------------------------------------------------------------------------------------------- cases


def normal(shape: Shape) -> Make:
    return lambda rng: rng.standard_normal(shape)


def positive(shape: Shape) -> Make:
    """Numbers far from zero, where log, sqrt and division have their poles."""
    return lambda rng: rng.uniform(0.5, 2.0, shape)


def apart(shape: Shape, *, shift: float = 0.0) -> Make:
    """Numbers of which no two are near each other, and none near zero: no kink of a maximum is near.

    With another ``shift`` of less than a half none is near those of the same size.
    """
    size = int(np.prod(shape))
    return lambda rng: ((rng.permutation(size) - size / 2 + 0.25 + shift) * (4 / size)).reshape(shape)


@dataclass(frozen=True)
class Case:
    """One call of an operation: its tensors by name (a shape, or a function that draws them), its options.

    Where the tensors and the options are not simply its arguments, ``call(operation, *tensors, **options)``
    makes the call. ``op`` and ``fn`` are filled in where the cases are collected.
    """

    name: str
    inputs: Mapping[str, Shape | Make]
    options: Mapping[str, Any] = field(default_factory=dict)
    call: Callable[..., Tensor] | None = None
    op: str = ""
    fn: Callable[..., Any] | None = None

    def arrays(self, dtype: str = "float64", seed: int = 0) -> dict[str, Any]:
        """Random inputs, the same for every dtype up to rounding."""
        rng = np.random.default_rng(seed)
        makers = {n: make if callable(make) else normal(make) for n, make in self.inputs.items()}
        return {name: np.asarray(make(rng)).astype(dtype) for name, make in makers.items()}

    def __call__(self, *tensors: Tensor) -> Tensor:
        assert self.fn is not None, f"{self} was not collected"
        result: Tensor = self.fn(*tensors, **self.options)
        return result

    def __str__(self) -> str:
        return f"{self.op}: {self.name}"
