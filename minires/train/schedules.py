"""Learning-rate schedules: the learning rate of each step of a run.

A schedule is written in a recipe as a small dict that JSON can hold, for example
``{"name": "cosine", "final": 0.0, "warmup": 0.05}``. Lengths are fractions of the run, so the same recipe
serves two epochs and two hundred; ``at`` and ``warmup`` may be numbers of steps as well. With ``s`` the step
(0, 1, ...), ``S`` the number of steps, ``f = s / S`` and ``lr`` the recipe's learning rate:

========== ====================================================================================
constant   lr
step       lr * factor^(number of places in ``at`` with place <= f; above 1, with place <= s of the run)
linear     lr * (final + (1 - final) * (1 - f))
cosine     lr * (final + (1 - final) * (1 + cos(pi f)) / 2)
one-cycle  a cosine from lr/start_div up to lr at ``peak``, then a cosine down to lr/(start_div*final_div)
plateau    lr * factor^(number of times the validation loss stopped falling), at least ``minimum``
========== ====================================================================================

``warmup`` > 0 puts a straight line from ``warmup_start * lr`` up to ``lr`` before the schedule, which then
runs over the steps that remain.

A number above 1 in ``at`` and ``warmup`` is one of steps, and whole; 1 is the whole run. Places in steps
count from the first step of the run, warm-up included, as papers give them: ``{"name": "step",
"at": [32000, 48000], "warmup": 400, "warmup_start": 0.1}``.

``begin`` gives the run a rate of its own until the training error falls below a share: ``{"name": "step",
"at": [32000, 48000], "begin": {"lr": 0.01, "until_error": 0.8}}``; see :class:`Begin`. The schedule goes on
below it, and shows from the step on at which it ends. It takes the place of ``warmup``.

A schedule of your own gets a name with :func:`register`.

Sources: step, Krizhevsky 2012 and He et al. arXiv:1512.03385; cosine, Loshchilov & Hutter arXiv:1608.03983;
one-cycle, Smith & Topin arXiv:1708.07120; warm-up, Goyal et al. arXiv:1706.02677; begin, He et al.
arXiv:1512.03385, section 4.2; plateau, PyTorch's ``ReduceLROnPlateau``.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from minires.errors import ConfigError, mapping, number, several, truth, unknown, whole
from minires.registry import Registry


@dataclass
class Curve:
    """How the learning rate goes over a run: called with the highest rate, a step and the number of steps.

    A subclass is a dataclass; its fields are the options that a recipe may give, and ``ranges`` says from
    where to where each may lie, 0 to 1 if it says nothing. ``in_steps`` names those which, above 1, are whole
    numbers of steps: for them ask :meth:`reached`. ``first_step`` is the step of the run at which the curve
    begins, behind the warm-up.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}
    in_steps: ClassVar[Collection[str]] = ()
    first_step = 0

    def __call__(self, lr: float, step: int, steps: int) -> float:
        """The learning rate of ``step``, which counts from 0 to ``steps - 1``."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__()")

    def reached(self, place: float, step: int, steps: int) -> bool:
        """Whether a step has come to a place: a share of the curve, or, above 1, a step of the run.

        >>> curve = Curve()
        >>> [curve.reached(place, 30, 100) for place in (0.25, 0.5, 29, 30, 31)]
        [True, False, True, True, False]
        """
        return place <= self.first_step + step if place > 1 else place <= step / steps

    def epoch_end(self, loss: float, lr: float) -> None:
        """Hear the validation loss of an epoch; ``lr`` is the highest rate."""

    def state_dict(self) -> dict[str, Any]:
        """What was learnt from the losses, as JSON can hold it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict``."""


@dataclass
class Constant(Curve):
    """The same rate at every step."""

    def __call__(self, lr: float, step: int, steps: int) -> float:
        return lr


@dataclass
class Steps(Curve):
    """The rate times ``factor`` at each of the places ``at``, which are fractions of the run, or, above 1,
    numbers of its steps."""

    at: Sequence[float] = (0.5, 0.75)
    factor: float = 0.1
    in_steps: ClassVar[Collection[str]] = ("at",)

    def __call__(self, lr: float, step: int, steps: int) -> float:
        return lr * math.prod(self.factor for place in self.at if self.reached(place, step, steps))


@dataclass
class Linear(Curve):
    """A straight line down to the share ``final`` of the rate."""

    final: float = 0.0

    def __call__(self, lr: float, step: int, steps: int) -> float:
        return lr * (self.final + (1.0 - self.final) * (1.0 - step / steps))


@dataclass
class Cosine(Curve):
    """Half a cosine down to the share ``final`` of the rate."""

    final: float = 0.0

    def __call__(self, lr: float, step: int, steps: int) -> float:
        return lr * (self.final + (1.0 - self.final) * (1.0 + math.cos(math.pi * step / steps)) / 2)


@dataclass
class OneCycle(Curve):
    """Half a cosine up to the rate at ``peak``, and half a cosine down.

    The last step of each half sits on the half's end value, as in PyTorch's OneCycleLR.
    """

    peak: float = 0.3
    start_div: float = 25.0
    final_div: float = 1e4
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "start_div": (1e-12, math.inf), "final_div": (1e-12, math.inf),
    }  # fmt: skip

    def __call__(self, lr: float, step: int, steps: int) -> float:
        first, last = lr / self.start_div, lr / self.start_div / self.final_div
        top = self.peak * steps - 1.0
        if step <= top:
            return _cosine(first, lr, step / top if top > 0 else 1.0)
        return _cosine(lr, last, (step - top) / max(steps - 1.0 - top, 1e-9))


@dataclass
class Plateau(Curve):
    """The rate times ``factor`` when the loss has not fallen for more than ``patience`` epochs.

    It has fallen when it is below the best so far by the share ``threshold``; no rate is below ``minimum``.
    """

    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    minimum: float = 0.0
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "patience": (0, math.inf), "minimum": (0, math.inf),
    }  # fmt: skip

    def __post_init__(self) -> None:
        self._best = math.inf
        self._bad_epochs = 0
        self._lr: float | None = None  # the highest rate until it was lowered

    def __call__(self, lr: float, step: int, steps: int) -> float:
        return lr if self._lr is None else self._lr

    def epoch_end(self, loss: float, lr: float) -> None:
        if loss < self._best * (1.0 - self.threshold):
            self._best, self._bad_epochs = loss, 0
        else:
            self._bad_epochs += 1
        if self._bad_epochs > self.patience:
            self._lr = max((lr if self._lr is None else self._lr) * self.factor, self.minimum)
            self._bad_epochs = 0

    def state_dict(self) -> dict[str, Any]:
        best = self._best if math.isfinite(self._best) else None
        return {"best": best, "bad_epochs": self._bad_epochs, "plateau_lr": self._lr}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best = math.inf if state["best"] is None else float(state["best"])
        self._bad_epochs = int(state["bad_epochs"])
        self._lr = None if state["plateau_lr"] is None else float(state["plateau_lr"])


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * fraction)) / 2


SCHEDULES: Registry[type[Curve]] = Registry("schedule", {
    "constant": Constant, "step": Steps, "linear": Linear, "cosine": Cosine, "one-cycle": OneCycle,
    "plateau": Plateau,
})  # fmt: skip
WARMUP = {"warmup": 0.0, "warmup_start": 0.0}  # options that all schedules have
BEGIN = "begin"  # and this one
BATCHES = 20  # over which the training error of a beginning is taken, unless it says so
LATER = 2  # steps from the batch that ends a beginning to the first one with the schedule's rate

Kind = TypeVar("Kind", bound=type[Curve])


def register(name: str) -> Callable[[Kind], Kind]:
    """Give a schedule of your own a name: above a dataclass that is a :class:`Curve`, or called with one.

    Raises: ConfigError if the name is another schedule's, or the class is no dataclass.

    >>> from dataclasses import dataclass
    >>> from minires.train import Schedule, schedules
    >>> @schedules.register("sawtooth")
    ... @dataclass
    ... class Sawtooth(schedules.Curve):
    ...     teeth: int = 4
    ...     ranges = {"teeth": (1, 100)}
    ...     def __call__(self, lr, step, steps):
    ...         return lr * (1 - self.teeth * step / steps % 1)
    >>> schedule = Schedule({"name": "sawtooth", "teeth": 2, "warmup": 0.2}, lr=1.0, total_steps=10)
    >>> [schedule.lr(step) for step in range(10)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 1.0, 0.75, 0.5, 0.25]
    """

    SCHEDULES.name_given(name)

    def add(kind: Kind) -> Kind:
        if "__dataclass_fields__" not in vars(kind):
            raise ConfigError(f"the schedule {name} must be a dataclass; put @dataclass above its class")
        SCHEDULES.add(name, kind)
        return kind

    return add


def options_of(name: Any) -> list[str]:
    """The names of what a recipe's dict may give to a schedule, beside ``name``.

    Raises: ConfigError for an unknown name, with the nearest one.

    >>> options_of("cosine")
    ['final', 'warmup', 'warmup_start', 'begin']
    """
    own = [field.name for field in dataclasses.fields(SCHEDULES.find(name)) if field.init]
    return list(dict.fromkeys([*own, *WARMUP, BEGIN]))


class Begin:
    """A rate of its own for the first steps of a run, until it has begun to learn.

    lr: the rate.
    until_error: it is kept until the training error is below this share.
    batches: over how many of the last batches the error is taken.
    at_most: no longer than so many steps; None: as long as it takes.

    The training error is the share of wrong pictures among those of the last ``batches`` batches, as the
    model saw them in training: augmented, each before the step that it was for, with the batch's own
    statistics. Before there are so many batches there is none. If it falls below with batch k (from 0), step
    k + 2 is the first with the schedule's rate: a GPU tells what a step came to while the next one is under
    way, and a run is the same on every device, and resumed. Once ended it does not come back.

    Raises: ConfigError for a value that does not fit.
    Source: He et al. 2015, arXiv:1512.03385, section 4.2: "we use 0.01 to warm up the training until the
    training error is below 80% (about 400 iterations), and then go back to 0.1 and continue training".

    >>> begin = Begin(lr=0.01, until_error=0.8, batches=2)
    >>> for step, right in enumerate([1, 1, 2, 3]):  # of 10 pictures each
    ...     begin.stepped(step, right, 10)
    >>> begin.ends, [begin.holds(step) for step in range(7)]
    (5, [True, True, True, True, True, False, False])
    """

    def __init__(
        self, *, lr: float, until_error: float, batches: int = BATCHES, at_most: int | None = None
    ) -> None:
        self.lr = number("lr of begin", lr, least=0)
        self.until_error = number("until_error of begin", until_error, above=0, most=1)
        self.batches = whole("batches of begin", batches)
        self.at_most = None if at_most is None else whole("at_most of begin", at_most)
        self.ends = self.at_most  # the first step with the schedule's rate, as far as is known
        self._last: deque[tuple[int, int]] = deque(maxlen=self.batches)  # wrong pictures, and all

    def holds(self, step: int) -> bool:
        """Whether a step has this rate."""
        return self.ends is None or step < self.ends

    def stepped(self, step: int, right: int, pictures: int) -> None:
        """Hear how many pictures of a step's batch were right."""
        if not self.holds(step + LATER):
            return
        self._last.append((pictures - right, pictures))
        wrong, seen = map(sum, zip(*self._last, strict=True))
        if len(self._last) == self.batches and wrong / seen < self.until_error:
            self.ends = step + LATER

    def state_dict(self) -> dict[str, Any]:
        """Where it ends, and what the last batches came to, as JSON can hold it."""
        return {"ends": self.ends, "last": [list(one) for one in self._last]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict``."""
        self.ends = None if state["ends"] is None else int(state["ends"])
        last = [(int(wrong), int(seen)) for wrong, seen in state["last"]]
        self._last = deque(last, maxlen=self.batches)


class Schedule:
    """The learning rate of every step of a run.

    ``schedule.lr(step)`` for step 0, 1, ..., total_steps - 1; ``schedule.epoch_end(loss)`` after each epoch
    (only ``plateau`` listens), and ``schedule.stepped(step, right, pictures)`` after each step (only
    ``begin``, a :class:`Begin` or None). ``state_dict`` is what a continuation needs.

    Raises: ConfigError for an unknown name or option (with the nearest one) or a value out of range.

    >>> schedule = Schedule({"name": "step", "at": [0.5], "factor": 0.1}, lr=1.0, total_steps=4)
    >>> [schedule.lr(step) for step in range(4)]
    [1.0, 1.0, 0.1, 0.1]
    >>> Schedule({"name": "cosin"}, lr=1.0, total_steps=4)
    Traceback (most recent call last):
    ...
    minires.errors.UnknownName: unknown schedule 'cosin'. Did you mean 'cosine'? Known: constant, step, ...
    """

    def __init__(self, spec: Mapping[str, Any], *, lr: float, total_steps: int) -> None:
        given = mapping("a schedule", spec)
        name = given.pop("name", None)
        kind, known = SCHEDULES.find(name), options_of(name)
        fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
        begin = None if BEGIN in fields else given.pop(BEGIN, None)  # an option of somebody's own comes first
        for key, value in given.items():
            if key not in known:
                raise ConfigError(unknown(f"option of the {name} schedule", key, known))
            what, (least, most) = f"{key} of the {name} schedule", kind.ranges.get(key, (0, 1))
            in_steps = key in kind.in_steps or key == "warmup"
            given[key] = _checked(what, value, fields.get(key), least, math.inf if in_steps else most)
            if in_steps:
                _shares_or_steps(what, given[key])
        self.begin = None if begin is None else _begin(name, begin)
        for field in fields.values():
            has_default = not (field.default is field.default_factory is dataclasses.MISSING)
            if field.name not in given and not has_default:
                raise ConfigError(f"the {name} schedule needs {field.name}")
        warmup, self.warmup_start = (float(given.pop(key, default)) for key, default in WARMUP.items())
        if self.begin and warmup:
            raise ConfigError(
                f"the {name} schedule has both warmup and begin, and each is a beginning; give one of them "
                "(warmup=0 leaves that out)"
            )
        self.curve = kind(**given)
        self.peak_lr = number("lr of a schedule", lr, least=0)
        total_steps = whole("total_steps of a schedule", total_steps)
        self.warmup_steps = int(warmup) if warmup > 1 else round(warmup * total_steps)
        self.steps = max(1, total_steps - self.warmup_steps)
        if "first_step" not in fields:  # which may be an option of somebody's own
            self.curve.first_step = self.warmup_steps

    def lr(self, step: int) -> float:
        """Give the learning rate of a step, counted from 0; a step past the end has the last step's."""
        if self.begin and self.begin.holds(step):
            return self.begin.lr
        if step < self.warmup_steps:
            share = self.warmup_start + (1.0 - self.warmup_start) * (step + 1) / self.warmup_steps
            return self.curve(self.peak_lr, 0, self.steps) * share
        return self.curve(self.peak_lr, min(step - self.warmup_steps, self.steps - 1), self.steps)

    def epoch_end(self, loss: float) -> None:
        """Tell the schedule the validation loss of the epoch that ended (the training loss without one)."""
        self.curve.epoch_end(loss, self.peak_lr)

    def stepped(self, step: int, right: int, pictures: int) -> None:
        """Tell the schedule how many pictures of a step's batch, on all ranks, were right."""
        if self.begin:
            self.begin.stepped(step, right, pictures)

    def state_dict(self) -> dict[str, Any]:
        """Give what has been learnt from losses and errors, as JSON can hold it."""
        state = self.curve.state_dict()
        return {"curve": state, BEGIN: self.begin.state_dict()} if self.begin else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict``."""
        if self.begin:
            self.begin.load_state_dict(state[BEGIN])
            state = state["curve"]
        self.curve.load_state_dict(state)


def _begin(name: str, spec: Any) -> Begin:
    """The beginning that a recipe's dict says. Raises: ConfigError."""
    given = mapping(f"begin of the {name} schedule", spec)
    known = ("lr", "until_error", "batches", "at_most")
    for key in given:
        if key not in known:
            raise ConfigError(unknown(f"option of begin of the {name} schedule", key, known))
    if missing := [key for key in known[:2] if key not in given]:
        raise ConfigError(
            f'begin of the {name} schedule needs {" and ".join(missing)}, for example {{"lr": 0.01, '
            '"until_error": 0.8}'
        )
    return Begin(**given)


def _shares_or_steps(what: str, value: Any) -> None:
    """Raises: ConfigError for a number above 1 that is not whole."""
    for one in value if isinstance(value, tuple) else (value,):
        if one > 1 and one != int(one):
            raise ConfigError(
                f"{what} has {one:g}, which is neither a share of the run, from 0 to 1, nor a whole number "
                f"of steps; for steps write {round(one)}, for a share of the run a number up to 1"
            )


def _checked(what: str, value: Any, field: dataclasses.Field[Any] | None, least: float, most: float) -> Any:
    """The value of an option, as its field is declared. Raises: ConfigError if it is not of that kind."""
    kind = getattr(field.type, "__name__", str(field.type)).lower() if field else "float"
    if kind == "bool":
        return truth(what, value)
    if kind == "str" and isinstance(value, str):
        return value
    if kind == "int":
        return int(number(what, whole(what, value, least=math.ceil(least)), most=most))
    if kind.startswith(("sequence", "list", "tuple")):
        return several(what, value, least=least, most=most)
    return number(what, value, least=least, most=most)
