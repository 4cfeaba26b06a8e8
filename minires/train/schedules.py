"""Learning-rate schedules: the learning rate of each step of a run.

A schedule is written in a recipe as a small dict that JSON can hold, for example
``{"name": "cosine", "final": 0.0, "warmup": 0.05}``. Every length is a fraction of the run, so the same
recipe serves two epochs and two hundred. With ``s`` the step (0, 1, ...), ``S`` the number of steps,
``f = s / S`` and ``lr`` the recipe's learning rate:

========== ====================================================================================
constant   lr
step       lr * factor^(number of places in ``at`` with place <= f)
linear     lr * (final + (1 - final) * (1 - f))
cosine     lr * (final + (1 - final) * (1 + cos(pi f)) / 2)
one-cycle  a cosine from lr/start_div up to lr at ``peak``, then a cosine down to lr/(start_div*final_div)
plateau    lr * factor^(number of times the validation loss stopped falling), at least ``minimum``
========== ====================================================================================

``warmup`` > 0 puts a straight line from ``warmup_start * lr`` up to ``lr`` before the schedule, which then
runs over the steps that remain. A schedule of your own gets a name with :func:`register`.

Sources: step, Krizhevsky 2012 and He et al. arXiv:1512.03385; cosine, Loshchilov & Hutter arXiv:1608.03983;
one-cycle, Smith & Topin arXiv:1708.07120; warm-up, Goyal et al. arXiv:1706.02677; plateau, PyTorch's
``ReduceLROnPlateau``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from minires.errors import ConfigError, mapping, number, several, truth, unknown, whole
from minires.registry import Registry


@dataclass
class Curve:
    """How the learning rate goes over a run: called with the highest rate, a step and the number of steps.

    A subclass is a dataclass; its fields are the options that a recipe may give, and ``ranges`` says from
    where to where each may lie, 0 to 1 if it says nothing.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}

    def __call__(self, lr: float, step: int, steps: int) -> float:
        """The learning rate of ``step``, which counts from 0 to ``steps - 1``."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__()")

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
    """The rate times ``factor`` at each of the places ``at``, which are fractions of the run."""

    at: Sequence[float] = (0.5, 0.75)
    factor: float = 0.1

    def __call__(self, lr: float, step: int, steps: int) -> float:
        return lr * math.prod(self.factor for place in self.at if place <= step / steps)


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
    ['final', 'warmup', 'warmup_start']
    """
    return [*(field.name for field in dataclasses.fields(SCHEDULES.find(name)) if field.init), *WARMUP]


class Schedule:
    """The learning rate of every step of a run.

    ``schedule.lr(step)`` for step 0, 1, ..., total_steps - 1; ``schedule.epoch_end(loss)`` after each epoch
    (only ``plateau`` listens). ``state_dict`` is what a continuation needs.

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
        for key, value in given.items():
            if key not in known:
                raise ConfigError(unknown(f"option of the {name} schedule", key, known))
            what, (least, most) = f"{key} of the {name} schedule", kind.ranges.get(key, (0, 1))
            given[key] = _checked(what, value, fields.get(key), least, most)
        for field in fields.values():
            has_default = not (field.default is field.default_factory is dataclasses.MISSING)
            if field.name not in given and not has_default:
                raise ConfigError(f"the {name} schedule needs {field.name}")
        warmup, self.warmup_start = (float(given.pop(key, default)) for key, default in WARMUP.items())
        self.curve = kind(**given)
        self.peak_lr = number("lr of a schedule", lr, least=0)
        total_steps = whole("total_steps of a schedule", total_steps)
        self.warmup_steps = round(warmup * total_steps)
        self.steps = max(1, total_steps - self.warmup_steps)

    def lr(self, step: int) -> float:
        """Give the learning rate of a step, counted from 0; a step past the end has the last step's."""
        if step < self.warmup_steps:
            share = self.warmup_start + (1.0 - self.warmup_start) * (step + 1) / self.warmup_steps
            return self.curve(self.peak_lr, 0, self.steps) * share
        return self.curve(self.peak_lr, min(step - self.warmup_steps, self.steps - 1), self.steps)

    def epoch_end(self, loss: float) -> None:
        """Tell the schedule the validation loss of the epoch that ended (the training loss without one)."""
        self.curve.epoch_end(loss, self.peak_lr)

    def state_dict(self) -> dict[str, Any]:
        """Give what has been learnt from the losses, as JSON can hold it."""
        return self.curve.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict``."""
        self.curve.load_state_dict(state)


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
