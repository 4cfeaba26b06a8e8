"""A model made ready to be trained on batches of one shape: a step without Python between its layers.

    step = minires.compile(model, x.shape, training=True)
    loss = cross_entropy(step(x), labels)
    loss.backward()

The result is a tensor on the tape as any other, of one operation that has all parameters for its inputs. So
the loss is any loss, and the optimiser any optimiser. What is between, forward and backward, is a program:

    values.py         how long each value and its gradient are needed, and where they lie
    convolution.py    the lines of convolutions
    batch_norm.py     ... and of batch norms
    program.py        ... and all others; and what is called as it is
    lines.py          how lines are taken down
    walk.py           one compiled function that does them, on every thread
"""

from __future__ import annotations

import functools
import gc
import itertools
import math
import threading
from collections.abc import Callable
from typing import Any, Never

import numpy as np

from minires import backend
from minires.backend import Array, thread_pool
from minires.backend.addresses import place_of
from minires.errors import ConfigError, MiniresError, ShapeError
from minires.modes import with_settings
from minires.nn.hooks import Bare
from minires.nn.layers import Dropout
from minires.nn.module import Module
from minires.nn.restored import modes
from minires.ops.registry import Description, Words, declare
from minires.plan.held import Held, Restorable, bare_still, parts
from minires.plan.probes import apart, watch
from minires.plan.steps import Traced, given
from minires.plan.trace import failing_as
from minires.plan.training.program import Writer
from minires.plan.training.walk import walk_numba
from minires.tensor import Tensor, record, set_apart

_APART, _GRADIENTS_APART = 2e-3, 5e-2  # float32 rounds to less in the deepest models
_tickets = itertools.count(1)

declare(
    Description(
        name="plan",
        math="y = model(x), of which the inputs are all parameters",
        backward="the program of the way back: the gradients of all parameters",
        english=Words(
            "Planned model",
            "A whole model as one step: a program of all its layers.",
            "The program goes back through all layers.",
        ),
        chinese=Words("计划好的模型", "整个模型作为一步：包含所有层的程序。", "程序反向走过所有层。"),
        label="planned model",
        unchecked="its parts are, and it is held against them when it is made",
    )
)


class TrainingPlan:
    """What :func:`minires.compile` gives for training. Called with a batch, it gives what the model would.

    Parameters are read where they are at each call; running statistics move as in the model. The gradients of
    a call are to be asked for before the next. Of a model that was changed (a layer, a rate, what is frozen)
    it wants to be made anew. What :func:`minires.recompute` would compute anew is kept.

    Shapes: x (N, H, W, C), just as it was made for -> (N, ...).
    Raises: ShapeError for pictures of another shape or dtype; ConfigError for a model that was changed;
    MiniresError from backward() if another call came between.
    """

    def __init__(
        self, model: Module, traced: Traced, dtype: Any, *, exact: bool = False, pictures: int | None = None
    ) -> None:
        self.shape, self.dtype = traced.input.shape, np.dtype(dtype)
        dropouts = {path: part.rng for path, part in model.named_modules() if isinstance(part, Dropout)}
        pictures = self.shape[0] if pictures is None else pictures
        self._program = Writer(traced, self.dtype, dropouts, exact=exact, pictures=pictures).program()
        self._calls = sum(not step.known for step in traced.steps)
        self.y_shape, self._lock, self._ticket = traced.output.shape, threading.Lock(), 0
        if not self._program.parameters:
            raise ConfigError("compile: the model has no parameter that is trained; leave out training=True")
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._inputs = {names.get(id(p), f"p{i}"): p for i, p in enumerate(self._program.parameters)}
        self._arrays: list[Array | None] = [None] * len(self._program.constants)
        self._shapes = [tensor.shape for tensor in self._program.parameters]
        constants = enumerate(self._program.constants)
        self._expected = [(names.get(id(c), f"constant {i}"), c.shape) for i, c in constants]
        tensors = [tensor for step in traced.steps for tensor in step.tensors.values()]
        self._still = [tensor for tensor in tensors if not tensor.requires_grad]
        self._read = {
            self._expected[number][0]: number
            for number, tensor in enumerate(self._program.constants)
            if any(tensor is one for one in self._program.read_again)
        }
        self._buffers = [self._owner(model, array) for _, _, array in self._program.buffers]
        self.moved = {(id(module), name) for module, name in self._buffers}
        self._parts, self._held, self._bare = parts(model), Held(model), Bare(model)
        self._ready: Callable[[Tensor, Array], None] | None = None
        self._pieces = [(item, np.empty(0, np.int64)) for item in self._program.backward]
        self.threads = backend.threads()

    @staticmethod
    def _owner(model: Module, array: Array) -> tuple[Module, str]:
        """The module that has an array of running statistics, and its name there."""
        for module in model.modules():
            for name, value in vars(module).items():
                if value is array:
                    return module, name
        raise ConfigError("a plan of training needs running statistics that are buffers of the model")

    def __call__(self, x: Any) -> Tensor:
        if isinstance(x, Tensor) and x.requires_grad:
            raise ShapeError("a plan of training gives no gradient for its pictures; train the model itself")
        x = given(x, self.shape, self.dtype, fewer=False)
        run = self._program
        with self._lock:
            self._look_up()
            self._ticket = 0  # what the call before left is gone, even if this one fails
            run.floats[run.x].reshape(self.shape)[...] = x
            self._run(run.forward)
            y = run.floats[run.y].reshape(self.y_shape).copy()
            ticket = self._ticket = next(_tickets)
            saved = {name: self._arrays[number] for name, number in self._read.items()}

        def backward(dy: Array) -> tuple[Array | None, ...]:
            return self._backward(ticket, dy)

        return record("plan", y, inputs=self._inputs, saved=saved, backward=backward)

    def _backward(self, ticket: int, dy: Array) -> tuple[Array | None, ...]:
        run = self._program
        with self._lock:
            if ticket != self._ticket:
                raise MiniresError(
                    "a plan of training keeps the numbers of its last call only, until its backward(): call "
                    "it, then backward(), then call it again"
                )
            self._ticket = 0
            lines, columns, numbers, skipped = run.gradients.T
            # What a call will leave gets no room here: it brings its own, and a dense layer's is large.
            gradients = {one: np.empty(self._shapes[one], self.dtype) for one in set(numbers.tolist())}
            addresses = {one: place_of(gradient) for one, gradient in gradients.items()}
            run.lines[lines, columns] = [addresses[one] for one in numbers.tolist()] + skipped
            run.floats[run.dy] = dy.reshape(-1)
            for item, complete in self._pieces:
                self._run([item])
                if self._ready is not None:
                    found = {one: gradients[one] for one in complete.tolist()} | run.called
                    for one, gradient in found.items():
                        self._ready(run.parameters[one], gradient)
                gradients.update(run.called)
                run.called.clear()
        return tuple(gradients.get(number) for number in range(len(self._shapes)))

    def tell(self, ready: Callable[[Tensor, Array], None], pieces: int) -> None:
        """From now on call ``ready(parameter, gradient)`` during the backward pass, as soon as gradients are
        complete: in about so many ``pieces``, each of about as many numbers. Each stays as it is, and is what
        ``backward`` gives in the end, too."""
        run = self._program
        last = np.full(len(self._shapes), -1)
        np.maximum.at(last, run.gradients[:, 2], run.gradients[:, 0])
        # After which lines the pass stops for a moment: where a share of all numbers has come together.
        order = np.argsort(last, kind="stable")
        sizes = np.array([math.prod(self._shapes[n]) for n in order]) * (last[order] >= 0)
        share = np.ceil(np.cumsum(sizes) / max(1, sizes.sum()) * pieces)
        ends = {int(last[n]) + 1 for n, one, after in zip(order, share, [*share[1:], pieces + 1], strict=True)
                if one != after and last[n] >= 0}  # fmt: skip
        self._pieces = []
        for item in run.backward:
            if not isinstance(item, tuple):
                self._pieces.append((item, np.empty(0, np.int64)))
                continue
            first, end = item
            stops = [*(one for one in sorted(ends) if first < one < end), end]
            for start, stop in zip([first, *stops], stops, strict=False):
                self._pieces.append(((start, stop), np.flatnonzero((last >= start) & (last < stop))))
        self._ready = ready

    def _look_up(self) -> None:
        """Where parameters and running statistics are now: somebody may have given them other arrays.

        Raises: ConfigError, ShapeError for what else was changed.
        """
        run = self._program
        bare_still(self._bare)
        for path, module in self._parts:
            _check_mode(path, module)
        if changed := self._held.changed(self.moved):
            raise ConfigError(
                f"{changed[0]} was changed after this plan was made; minires.compile makes one for the model "
                "as it is now"
            )
        if any(tensor.requires_grad for tensor in self._still):
            raise ConfigError(
                "a parameter is trained now that was not when this plan was made; minires.compile makes one "
                "that trains it"
            )
        arrays = [tensor.data for tensor in run.constants]
        if any(now is not before for now, before in zip(arrays, self._arrays, strict=True)):
            for array, (name, shape) in zip(arrays, self._expected, strict=True):
                self._check(name, array, shape)
            addresses = np.array([place_of(array) for array in arrays], np.int64)
            lines, columns, numbers, skipped = run.addresses.T
            run.lines[lines, columns] = addresses[numbers] + skipped
            self._arrays[:] = arrays  # last, as what was refused is looked at again
        for place, (module, name) in enumerate(self._buffers):
            line, column, array = run.buffers[place]
            now = getattr(module, name)
            if now is not array:
                self._check(name, now, array.shape)
                run.lines[line, column] = place_of(now)
                run.buffers[place] = line, column, now

    def _check(self, name: str, array: Any, shape: tuple[int, ...]) -> None:
        """Kernels find the numbers of an array by its address."""
        if not isinstance(array, np.ndarray) or array.dtype != self.dtype or array.shape != shape:
            found = f"{getattr(array, 'dtype', type(array).__name__)} {getattr(array, 'shape', '')}"
            raise ShapeError(
                f"{name} is {found} now, and was {self.dtype} {shape} when this plan was made; "
                "minires.compile makes one for it"
            )
        if not array.flags.c_contiguous:
            raise ShapeError(f"{name} has gaps now, or its axes are turned; np.ascontiguousarray mends that")

    def _run(self, items: list[Any]) -> None:
        run = self._program
        for item in items:
            if not isinstance(item, tuple):
                item()
                continue
            first, last = item
            counters = np.zeros(2 * (last - first) + 1, np.int64)
            arrays = run.floats, run.doubles, run.offsets, run.sees, run.longs, counters
            lines = run.lines[first:last], run.waits[first:last]
            walk = functools.partial(walk_numba, *lines, *arrays, run.tiles, run.squares)
            backend.parallel_calls([walk] * self.threads)

    @property
    def calls(self) -> int:
        """How many operations it calls, as no kernel of plans knows them."""
        return self._calls

    def __repr__(self) -> str:
        return f"<TrainingPlan for {self.shape} {self.dtype}, {self.nbytes / 2**20:.0f} MiB>"

    def __getstate__(self) -> Never:
        raise MiniresError("a plan is neither pickled nor copied; take the model, and compile that anew")

    def __len__(self) -> int:
        return int(self.shape[0])

    @property
    def nbytes(self) -> int:
        """The bytes of all its arrays: values, gradients on their way, and tables."""
        run = self._program
        return int(
            run.floats.nbytes + run.offsets.nbytes + run.longs.nbytes + run.sees.nbytes + run.lines.nbytes
        )


def _check_mode(path: str, module: Module) -> None:
    if not module.training:
        raise ConfigError(
            f"{path or 'the model'} is in inference mode, and a plan of training trains all of it: call "
            "model.train() before; to keep the statistics of a batch norm, set its frozen = True"
        )


def make(model: Module, shape: tuple[int, ...], dtype: Any) -> TrainingPlan:
    """A plan for batches of a shape; it is held against the model with a batch of two pictures.

    The model is left as it was. Raises: as :func:`minires.compile`.
    """
    for path, module in parts(model):
        _check_mode(path, module)
    rng = np.random.default_rng(0)
    x, few = rng.standard_normal(shape).astype(dtype), min(2, shape[0])
    others = [make(size=(few, *shape[1:])).astype(dtype) for make in (rng.standard_normal, rng.random)]
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    chance, held = model.random_states(), Restorable(model)
    try:
        with with_settings(recording=True, fused=True), set_apart(learned):
            traced = watch(model, x, training=True)
            # A plan that nobody keeps: it is large, and is to be gone before the other is made.
            plan = TrainingPlan(model, traced.of(few), dtype, exact=True, pictures=shape[0])
            if changed := held.changed(plan.moved, new=True):
                raise ConfigError(
                    f"compile: the model changes {changed[0]} when it is called, and a plan would not; train "
                    "the model itself"
                )
            with failing_as(ConfigError, "when a plan of it is checked"):
                for some in others:  # the second as pictures are, from 0 to 1
                    _check(model, plan, some)
            del plan
    finally:
        held.restore()
        model.load_random_states(chance)
        gc.collect()  # what is called and the plan that calls it hold each other
        thread_pool.give_memory_back()
    return TrainingPlan(model, traced, dtype)


def _check(model: Module, plan: TrainingPlan, x: Array) -> None:
    """Other pictures than those that were traced must give what the model gives, and its gradients."""
    found, chance = [], model.random_states()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with modes(model, training=True), np.errstate(all="ignore"):
        for forward in model, plan:
            model.load_random_states(chance)
            for parameter in parameters:
                parameter.grad = None
            y = forward(Tensor(x))
            dy = np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype)
            y.backward(dy)
            found.append(
                [y.data, *(parameter.grad for parameter in parameters if parameter.grad is not None)]
            )
    (expected, *right), (scores, *ours) = found
    rounding = 1e4 * float(np.finfo(dy.dtype).eps) * float(np.linalg.norm(dy))  # all there is of a zero
    same = len(right) == len(ours)
    off = [apart([expected], [scores]), apart(right, ours, rounding) if same else math.inf]
    if not (off[0] <= _APART and off[1] <= _GRADIENTS_APART):
        raise ConfigError(
            "compile: for other pictures than those it was made with the plan gives other scores or "
            f"gradients than the model (by {off[0]:.0%} and {off[1]:.0%}). What the model computes "
            "hangs on more than its operations say: on numbers taken out of a tensor, on an if, or on chance"
        )
