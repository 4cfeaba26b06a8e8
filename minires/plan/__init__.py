"""A model made ready for pictures of one shape: inference without a tape, and without Python between layers.

    plan = minires.compile(model, x.shape)
    scores = plan(x)

A model is one object a layer, which one can read, step through and change, and each call of an operation asks
anew for shapes, memory and kernels. For one picture in a small network that takes longer than the arithmetic.
A plan asks once:

    trace.py      one pass through the model, watched: what is computed from what (steps.py)
    probes.py     more passes: whether that is so for other pictures, too
    held.py       what a model holds besides, and whether it is so still
    program.py    where each array lies, and what each kernel has to do
    walk.py       one compiled function that does it, on every thread
    training.py   the same for a step of training, forward and backward

Batch norms are folded into the convolutions before them (``minires.fuse``), kernels are packed once for the
tiles (``minires.backend.tile_products``), additions and ReLU are done with the sums that they follow, and
what is no longer needed makes room for what comes.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from typing import Any, Literal, Never, overload

import numpy as np

from minires import backend
from minires.backend import Array
from minires.backend.kernels import sched_yield
from minires.errors import ConfigError, MiniresError, ShapeError, as_whole
from minires.nn.fuse import fuse
from minires.nn.hooks import Bare
from minires.nn.module import Module
from minires.nn.restored import modes
from minires.plan import program
from minires.plan.held import bare_still
from minires.plan.probes import apart, watch
from minires.plan.steps import at_a_time, given
from minires.plan.trace import failing_as
from minires.plan.training import TrainingPlan as TrainingPlan
from minires.plan.training import make
from minires.plan.walk import walk_numba
from minires.tensor import Tensor, no_grad

_APART = 2e-3  # of the scores: float32 rounds to 1e-3 at most in the deepest models
_plans: weakref.WeakSet[Plan | TrainingPlan] = weakref.WeakSet()


def _after_fork() -> None:
    """In a forked child: who holds a lock is a thread of the parent, and will never let go."""
    for plan in list(_plans):
        plan._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Plan:
    """What :func:`compile` gives. Called with pictures, it gives what the model would give.

    Several threads may call it; they take turns.

    Shapes: x (n, H, W, C) with the H, W and C, and at most as many pictures, as it was made for -> (n, ...).
    Raises: ShapeError for pictures of another shape or dtype; ConfigError while the model has a forward hook
    or is changed by ``minires.intervene``, of which a plan knows nothing.
    """

    def __init__(self, folded: Module, x: Array, bare: Bare) -> None:
        self.shape, self.dtype, self._bare = x.shape, x.dtype, bare
        self._program, self._lock = program.write(at_a_time(watch(folded, x)), x.dtype), threading.Lock()
        _plans.add(self)

    def __call__(self, x: Any) -> Array:
        x = given(x, self.shape, self.dtype, fewer=True)
        bare_still(self._bare)
        run = self._program
        y, few = np.empty((len(x), *run.y_shape[1:]), self.dtype), run.y_shape[0]
        with self._lock:
            pixels = run.floats[run.x].reshape(few, *self.shape[1:])
            scores = run.floats[run.y].reshape(run.y_shape)
            for first in range(0, len(x), few):
                some = x[first : first + few]
                pixels[: len(some)] = some
                pixels[len(some) :] = some[-1]
                for item in run.items:
                    self._run(item)
                y[first : first + few] = scores[: len(some)]
        return y

    def _run(self, item: Any) -> None:
        run = self._program
        if isinstance(item, program.Called):
            with no_grad():
                item(run.floats)
            return
        lines = run.lines[slice(*item)]
        counters = np.zeros(2 * len(lines), np.int64)
        arrays = lines, run.floats, run.offsets, run.sees, run.every, run.sums, counters
        walk = functools.partial(walk_numba, *arrays, run.tiles)
        backend.parallel_calls([walk] * backend.threads())

    def __repr__(self) -> str:
        return f"<Plan for {self.shape} {self.dtype}, {self.nbytes / 2**20:.0f} MiB>"

    def __getstate__(self) -> Never:
        raise MiniresError("a plan is neither pickled nor copied; take the model, and compile that anew")

    def __len__(self) -> int:
        return int(self.shape[0])

    @property
    def calls(self) -> int:
        """How many operations it calls, as no kernel of plans knows them."""
        return sum(isinstance(item, program.Called) for item in self._program.items)

    @property
    def nbytes(self) -> int:
        """The bytes of all its arrays: weights, values and tables."""
        run = self._program
        return int(run.floats.nbytes + run.offsets.nbytes + run.sees.nbytes + run.lines.nbytes)


def planned(model: Module, shape: tuple[int, ...]) -> Plan | Module:
    """The plan of a model for pictures of ``shape``; the model itself where there is none for it."""
    try:
        return compile(model, shape)
    except (ConfigError, ShapeError):  # of these the model itself will tell
        return model


@overload
def compile(
    model: Module, shape: tuple[int, ...], *, training: Literal[False] = False, dtype: Any = np.float32
) -> Plan: ...
@overload
def compile(
    model: Module, shape: tuple[int, ...], *, training: Literal[True], dtype: Any = np.float32
) -> TrainingPlan: ...
def compile(
    model: Module, shape: tuple[int, ...], *, training: bool = False, dtype: Any = np.float32
) -> Plan | TrainingPlan:
    """Make a plan of a model in inference mode, or of its training, for pictures of ``shape`` (N, H, W, C).

    The model runs once with pictures of noise, and what it did then is the plan. Operations that no kernel of
    plans knows are called, one by one (``plan.calls`` of them). On other pictures the plan is held against
    the model: what hangs on the numbers in a picture (an ``if`` on them) is refused, as far as that shows.
    The weights are copied: who changes the model makes a new plan. The model is left as it was.

    Batch norms are folded, so results differ from the model's by rounding; from those of
    ``minires.fuse(model)`` only where one takes Winograd's way and the other does not, or means are added up
    in another order. What each picture gives hangs on no other.

    A plan of training gives, from just so many pictures, a tensor on the tape, whose ``backward()`` leaves
    the gradients of the model's parameters; these it reads and moves as the model itself would, bit for bit
    where both take the same kernels (the statistics of a dense block's history are added up once by a plan,
    and anew for each layer by the model). It is faster by what Python costs: much for small batches.

    Raises: ConfigError for an operation that does not declare all that a call takes, for what the operations
    do not show, where Numba is missing, for a model on a GPU, or one that has forward hooks or is changed by
    ``minires.intervene``; ShapeError if such pictures do not fit the
    model.

    >>> from minires import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, relu=True), nn.GlobalAvgPool2d(), nn.Linear(8, 4))
    >>> plan = compile(model, (1, 16, 16, 3))
    >>> x = np.ones((1, 16, 16, 3), np.float32)
    >>> plan(x).shape, bool(np.allclose(plan(x), model(x).data, atol=1e-6))
    ((1, 4), True)
    >>> step = compile(model, (8, 16, 16, 3), training=True)
    >>> step(np.ones((8, 16, 16, 3), np.float32)).sum().backward()
    >>> model[2].bias.grad.tolist()
    [8.0, 8.0, 8.0, 8.0]
    """
    if not isinstance(model, Module):
        raise ConfigError(f"compile: a plan is made of a model, a Module, not of {model!r}")
    whole = tuple(as_whole(size) for size in shape) if isinstance(shape, tuple | list) else ()
    if len(whole) < 2 or not all(size is not None and size > 0 for size in whole):
        raise ShapeError(f"compile: shape must be that of x, (N, H, W, C), each at least 1, not {shape!r}")
    if backend.dtype_of(dtype) not in (np.float32, np.float64):
        raise ConfigError(f"compile: dtype must be 'float32' or 'float64', not {dtype!r}")
    if not backend.fast(np.empty(0)) or sched_yield is None:
        raise ConfigError("compile: a plan is for the CPU with Numba; call minires.fuse(model) instead")
    if any(parameter.device != "cpu" for parameter in model.parameters()):
        raise ConfigError('compile: the model is on a GPU, and a plan is for the CPU: model.to("cpu")')
    bare_still(Bare(model), "compile: ")
    if training:
        step = make(model, tuple(map(int, shape)), backend.dtype_of(dtype))
        _plans.add(step)
        return step
    rng = np.random.default_rng(0)
    with failing_as(ConfigError, "for one picture of zeros"):
        folded = fuse(model, whole[1:])  # type: ignore[arg-type]
    x, others = (rng.standard_normal(whole).astype(dtype) for _ in range(2))  # type: ignore[arg-type]
    plan = Plan(folded, x, Bare(model))
    _check(plan, folded, others)
    return plan


def _check(plan: Plan, folded: Module, x: Array) -> None:
    """Pictures that were not traced must give what the model gives, one alone, too, and each the same
    whatever stands beside it."""
    likely = np.random.default_rng(1).random(x.shape).astype(x.dtype)  # as pictures are: from 0 to 1
    checked = failing_as(ConfigError, "when a plan of it is checked")
    with np.errstate(all="ignore"), no_grad(), modes(folded, training=False), checked:
        scores = [(folded(Tensor(some)).data, plan(some)) for some in (x, likely, likely[:1])]
        same = all(apart([right], [ours]) <= _APART for right, ours in scores)
        middle = len(x) // 2
        changed = np.concatenate([x[:middle], likely[middle : middle + 1], x[middle + 1 :]])
        alone = np.array_equal(scores[1][1][middle], plan(changed)[middle], equal_nan=True)
    if not (same and alone):
        raise ConfigError(
            "compile: for other pictures than those it was made with the plan gives other scores than the "
            "model. What the model computes hangs on more than its operations say: on numbers taken out of a "
            "tensor (x.data, x.numpy()), on an if, on chance, or of a picture on those beside it"
        )
