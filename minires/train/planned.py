"""The forward pass of a run on the CPU: by a plan, where one can be made and the run is long enough.

A plan of training (``minires.compile(..., training=True)``) is for batches of one shape; those of another,
the last of an epoch, go through the model itself. Which way a batch goes hangs on the run alone, not on where
it was interrupted, so a run that is continued gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

from minires.backend import Array
from minires.distributed import Communicator, bounds
from minires.errors import ConfigError, ShapeError
from minires.modes import with_settings
from minires.nn.hooks import Bare
from minires.nn.module import Module
from minires.plan import TrainingPlan
from minires.plan import compile as plan_of
from minires.tensor import Tensor
from minires.train.config import Config
from minires.train.gradients import BUCKETS
from minires.train.steps import parts

WORTH = 200  # steps of a run; fewer do not save the time that the kernels take to compile, once on a machine

_MOST = 5  # plans of a model that is changed again and again


def of_run(model: Module, config: Config, *, batches: int, comm: Communicator) -> Forward:
    """The forward pass of a run with so many batches in an epoch. A plan is for the part of a batch that a
    rank has at a time, and knows of no batch norm over several ranks."""
    sync = config.batch_norm == "sync" and comm.size > 1
    passes = config.epochs * batches * config.accumulate if config.plan and not sync else 0
    first = parts(config.batch_size, config.batch_size, config.accumulate)[0]
    start, stop = bounds(first, comm.rank, comm.size)
    return Forward(model, passes, stop - start)


class Forward:
    """Called with pictures, it gives the logits of ``model``, for a run of so many steps and such batches.

    A model with operations that a plan only calls goes by itself: its plan would not be faster. So does one
    with forward hooks, as long as it has them.
    """

    def __init__(self, model: Module, steps: int, batch: int) -> None:
        self.model, self.batch, self.bare = model, batch, Bare(model)
        self.is_wanted = steps >= WORTH
        self.plan: TrainingPlan | None = None
        self.made = 0  # plans, or attempts
        self.say: Callable[[str], None] = lambda line: None
        self.ready: Callable[[Tensor, Array], None] | None = None  # is told of gradients that are complete

    def __call__(self, x: Tensor) -> Tensor:
        if self.bare.found():
            watched: Tensor = self.model(x)
            return watched
        if self.is_wanted and len(x) == self.batch and x.device == "cpu":
            self.is_wanted = False
            try:
                with with_settings(share=None):  # it is tried with pictures of no batch
                    plan = plan_of(self.model, x.shape, training=True, dtype=x.dtype)
                if plan.calls == 0:
                    self.plan = plan
                    if self.ready is not None:
                        plan.tell(self.ready, BUCKETS)
                if plan.calls == 0 and not self.made:
                    self.say("each step goes by a plan of the model (minires.compile)")
            except (ConfigError, ShapeError):  # the model itself goes on
                pass
            self.made += 1
        if self.plan is not None and x.shape == self.plan.shape and x.dtype == self.plan.dtype:
            try:
                return self.plan(x)
            except (ConfigError, ShapeError):  # the model was changed meanwhile
                self.plan, self.is_wanted = None, self.made < _MOST
                return self(x)
        logits: Tensor = self.model(x)
        return logits
