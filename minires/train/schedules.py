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
runs over the steps that remain.

Sources: step, Krizhevsky 2012 and He et al. arXiv:1512.03385; cosine, Loshchilov & Hutter arXiv:1608.03983;
one-cycle, Smith & Topin arXiv:1708.07120; warm-up, Goyal et al. arXiv:1706.02677; plateau, PyTorch's
``ReduceLROnPlateau``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from minires.errors import ConfigError
from minires.train.names import unknown

# The options of each schedule and their defaults; a recipe may name no others.
OPTIONS: dict[str, dict[str, Any]] = {
    "constant": {},
    "step": {"at": [0.5, 0.75], "factor": 0.1},
    "linear": {"final": 0.0},
    "cosine": {"final": 0.0},
    "one-cycle": {"peak": 0.3, "start_div": 25.0, "final_div": 1e4},
    "plateau": {"factor": 0.1, "patience": 10, "threshold": 1e-4, "minimum": 0.0},
}
WARMUP = {"warmup": 0.0, "warmup_start": 0.0}


class Schedule:
    """The learning rate of every step of a run.

    ``schedule.lr(step)`` for step 0, 1, ..., total_steps - 1; ``schedule.epoch_end(loss)`` after each epoch
    (only ``plateau`` listens). ``state_dict`` is what a continuation needs.

    Raises: ConfigError for an unknown name or option (with the nearest one) or a value out of range.
    """

    def __init__(self, spec: Mapping[str, Any], *, lr: float, total_steps: int) -> None:
        name = spec.get("name")
        if name not in OPTIONS:
            raise ConfigError(unknown("schedule", name, OPTIONS))
        options = OPTIONS[name] | WARMUP
        for key in spec:
            if key != "name" and key not in options:
                raise ConfigError(unknown(f"option of the {name} schedule", key, options))
        self.name: str = name
        self.options: dict[str, Any] = options | {key: spec[key] for key in spec if key != "name"}
        _check(name, self.options)
        if lr < 0 or total_steps < 1:
            raise ConfigError(f"a schedule needs lr >= 0 and at least one step, not {lr} and {total_steps}")
        self.peak_lr = float(lr)
        self.warmup_steps = round(self.options["warmup"] * total_steps)
        self.steps = max(1, total_steps - self.warmup_steps)
        self._best = math.inf
        self._bad_epochs = 0
        self._plateau_lr = self.peak_lr

    def lr(self, step: int) -> float:
        """Give the learning rate of a step, counted from 0; a step past the end has the last step's."""
        if step < self.warmup_steps:
            first = self.options["warmup_start"]
            return self._main(0) * (first + (1.0 - first) * (step + 1) / self.warmup_steps)
        return self._main(min(step - self.warmup_steps, self.steps - 1))

    def epoch_end(self, loss: float) -> None:
        """Tell the schedule the validation loss of the epoch that ended (the training loss without one)."""
        if self.name != "plateau":
            return
        if loss < self._best * (1.0 - self.options["threshold"]):
            self._best, self._bad_epochs = loss, 0
        else:
            self._bad_epochs += 1
        if self._bad_epochs > self.options["patience"]:
            self._plateau_lr = max(self._plateau_lr * self.options["factor"], self.options["minimum"])
            self._bad_epochs = 0

    def state_dict(self) -> dict[str, Any]:
        """Give what has been learnt from the losses, as JSON can hold it (None stands for infinity)."""
        best = self._best if math.isfinite(self._best) else None
        return {"best": best, "bad_epochs": self._bad_epochs, "plateau_lr": self._plateau_lr}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict``."""
        self._best = math.inf if state["best"] is None else float(state["best"])
        self._bad_epochs = int(state["bad_epochs"])
        self._plateau_lr = float(state["plateau_lr"])

    def _main(self, step: int) -> float:
        o, fraction = self.options, step / self.steps
        if self.name == "step":
            return self.peak_lr * o["factor"] ** sum(place <= fraction for place in o["at"])
        if self.name == "linear":
            return self.peak_lr * (o["final"] + (1.0 - o["final"]) * (1.0 - fraction))
        if self.name == "cosine":
            return self.peak_lr * (o["final"] + (1.0 - o["final"]) * (1.0 + math.cos(math.pi * fraction)) / 2)
        if self.name == "one-cycle":
            # The last step of each half sits on the half's end value, as in PyTorch's OneCycleLR.
            first, last = self.peak_lr / o["start_div"], self.peak_lr / o["start_div"] / o["final_div"]
            top = o["peak"] * self.steps - 1.0
            if step <= top:
                return _cosine(first, self.peak_lr, step / top if top > 0 else 1.0)
            return _cosine(self.peak_lr, last, (step - top) / max(self.steps - 1.0 - top, 1e-9))
        return self._plateau_lr if self.name == "plateau" else self.peak_lr


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * fraction)) / 2


def _check(name: str, options: Mapping[str, Any]) -> None:
    """Refuse values outside their range, with the value in the message."""
    ranges = {
        "warmup": (0, 1),
        "warmup_start": (0, 1),
        "final": (0, 1),
        "peak": (0, 1),
        "factor": (0, 1),
        "threshold": (0, 1),
        "minimum": (0, math.inf),
        "patience": (0, math.inf),
        "start_div": (1e-12, math.inf),
        "final_div": (1e-12, math.inf),
    }
    for key, value in options.items():
        low, high = ranges.get(key, (0, 1))
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float) or not low <= number <= high:
                raise ConfigError(f"{key} of the {name} schedule is {value!r}; use {low} to {high}")
