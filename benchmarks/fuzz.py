"""Random arrays and options into every operation, layer and optimiser: a right result, or an error in words.

    python benchmarks/fuzz.py --cases 20000

A case takes a call that is right and changes some of its arrays (shape, dtype, order in memory, read-only,
zero sizes, NaN) and options (other kinds of values, NumPy's numbers, out of range). What may come out:

    right      the kernels and the reference implementation give the same result, and the same gradients
    refused    a MiniresError, in both
    unclear    another exception: NumPy's, Numba's, Python's
    different  kernels and reference implementation disagree
    crash      the process died
    hang       no answer in a minute

The first two are as it should be; every other outcome is printed with its number, under which it can be run
again: ``python benchmarks/fuzz.py --only 1234``. The counts are written to ``results/fuzz.json``.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import minires
from minires import backend, nn, optim
from minires.errors import MiniresError
from minires.ops import cases
from minires.tensor import Tensor
from minires.train.ema import EMA

RESULT = Path(__file__).parent / "results" / "fuzz.json"
PATIENCE = 60  # seconds for one case, compiling included
FINE = ("right", "refused")
CLOSE = {"float32": 1e-3, "float64": 1e-9, "bfloat16": 0.1}

_LARGE = 10**7  # numbers; of a larger result only the shape is compared

Rng = np.random.Generator
SIZES = [0, 1, 1, 2, 2, 3, 3, 4, 5, 7, 8, 9, 16, 17, 32]
DTYPES = ["float32"] * 12 + ["float64"] * 6 + [
    "float16", "int64", "int32", "uint8", "bool", "complex64", ">f4", "object", "U3", "bfloat16",
    "datetime64[s]",
]  # fmt: skip
VALUES: list[Any] = [
    0, 1, 2, 3, 5, -1, -2, 100, 2**31, 2**63, 10**30, np.int64(2), np.int8(1), np.uint8(3), np.float32(0.5),
    0.0, 0.5, 1.0, 1.5, -0.5, 1e-8, 1e30, float("nan"), float("inf"), -float("inf"), None, True, False,
    np.True_, "", "same", "ceil", "valid", "x", "0", (), (1,), (1, 2), (2, 1), (0, 0), (1, 1, 1), [1, 2],
    [2, 2], [0.5, 1],
    ((1, 2), (0, 1)), ((1, 0), (2, -1)), (None, 1), {"a": 1}, {1, 2}, 1j, b"x", np.array(2), np.array([1, 2]),
    np.array([1.0, 2.0]), np.array([True, False]), slice(0, 2), Ellipsis, object, len,
]  # fmt: skip


def shape(rng: Rng) -> tuple[int, ...]:
    return tuple(int(rng.choice(SIZES)) for _ in range(rng.integers(0, 6)))


def near(rng: Rng, old: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that is like another one: an axis longer, gone, more, zero, exchanged."""
    new = list(old)
    for _ in range(rng.integers(1, 3)):
        place = int(rng.integers(0, len(new) + 1))
        change = rng.integers(0, 5)
        if change == 0 or not new or place == len(new):
            new.insert(place, int(rng.choice(SIZES)))
        elif change == 1:
            del new[place]
        elif change == 2:
            new[place] = int(rng.choice(SIZES))
        elif change == 3:
            new[place] = max(0, new[place] + int(rng.integers(-1, 2)))
        else:
            rng.shuffle(new)
    return tuple(new[:7])


def numbers(rng: Rng, size: tuple[int, ...], dtype: str) -> Any:
    """An array of a dtype, mostly of ordinary numbers."""
    values = np.asarray(rng.standard_normal(size)) * rng.choice([1, 1, 1, 1e-3, 30])
    special = rng.integers(0, 12)
    if special < 3 and values.size:
        values.flat[rng.integers(0, values.size)] = [np.nan, np.inf, -np.inf][special]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dtype == "bfloat16":
            return np.asarray(values, backend.bfloat16())
        if dtype == "datetime64[s]":
            return np.zeros(size, dtype)
        return np.asarray(np.asarray(values).astype(dtype))


def laid_out(rng: Rng, array: Any) -> Any:
    """The same numbers otherwise in memory."""
    how = int(rng.integers(0, 9))
    if how == 0:
        array = np.asfortranarray(array)
    elif how == 1 and array.ndim:
        array = np.repeat(array, 2, axis=-1)[..., ::2]
    elif how == 2 and array.ndim:
        array = array[::-1].copy()[::-1]
    elif how == 3 and array.ndim and array.shape[0]:
        array = np.broadcast_to(array[:1], array.shape)
    elif how == 4:
        raw = np.empty(array.nbytes + 1, np.uint8)[1:]  # at an odd address
        if array.dtype.kind in "fiu" and array.dtype.names is None:
            odd = raw[: array.nbytes].view(array.dtype).reshape(array.shape)
            odd[...] = array
            array = odd
    elif how == 5:
        array = array.view()
        array.flags.writeable = False
    elif how == 6 and array.ndim > 1:
        array = np.swapaxes(np.swapaxes(array, 0, -1).copy(), 0, -1)
    return array


def changed_array(rng: Rng, array: Any) -> Any:
    """An array that is like another one, or quite another thing."""
    kind = rng.integers(0, 12)
    if kind == 0:
        return numbers(rng, shape(rng), str(rng.choice(DTYPES)))
    if kind == 1:
        return VALUES[int(rng.integers(0, len(VALUES)))]
    if kind <= 5:
        return numbers(rng, near(rng, array.shape), str(array.dtype))
    if kind == 6:
        return numbers(rng, array.shape, str(rng.choice(DTYPES)))
    if kind == 7:
        return array.tolist()
    return numbers(rng, array.shape, str(array.dtype))


def changed_option(rng: Rng, value: Any) -> Any:
    kind = rng.integers(0, 4)
    if kind == 0 and isinstance(value, int | float) and not isinstance(value, bool):
        return type(value)(value + rng.choice([-1, 1, 2]))
    if kind == 1 and isinstance(value, tuple | list) and value:
        new = list(value)
        new[int(rng.integers(0, len(new)))] = VALUES[int(rng.integers(0, len(VALUES)))]
        return type(value)(new)
    return VALUES[int(rng.integers(0, len(VALUES)))]


Call = Callable[[], list[Any]]  # gives the arrays of a result, the same each time


def of_operation(rng: Rng) -> tuple[str, Call]:
    """A call of an operation, from its own cases."""
    name = str(rng.choice(list(CASES)))
    case = CASES[name][int(rng.integers(0, len(CASES[name])))]
    dtype = "float32" if rng.integers(0, 3) else "float64"
    arrays: list[Any] = list(case.arrays(dtype, seed=int(rng.integers(0, 1000))).values())
    options = dict(case.options)
    if rng.integers(0, 8) == 0:  # all inputs longer, as in a network
        arrays = [numbers(rng, tuple(5 * n for n in array.shape), dtype) for array in arrays]
    for _ in range(rng.choice([0, 1, 1, 2])):
        place = int(rng.integers(0, len(arrays)))
        if hasattr(arrays[place], "shape"):
            changed = changed_array(rng, arrays[place])
            if case.call is None or isinstance(changed, np.ndarray):  # such a case wants tensors itself
                arrays[place] = changed
    arrays = [laid_out(rng, a) if isinstance(a, np.ndarray) and rng.integers(0, 2) else a for a in arrays]
    # Of a case that makes the call itself some are its own.
    own = [key for key in options if case.call is None or key not in ("seed", "first", "training")]
    if own and rng.integers(0, 2):
        key = str(rng.choice(own))
        options[key] = changed_option(rng, options[key])
    as_they_are = case.call is None and rng.integers(0, 6) == 0

    def call() -> list[Any]:
        made = [isinstance(array, np.ndarray) and not as_they_are for array in arrays]
        given = [leaf(array) if make else array for make, array in zip(made, arrays, strict=True)]
        return with_gradients(case.fn(*given, **options), given)

    shown = ", ".join([*(describe(array) for array in arrays), *(f"{k}={v!r}" for k, v in options.items())])
    return f"{case}: {name}({shown})", call


LAYERS: dict[str, tuple[list[tuple[int, ...]], list[dict[str, Any]]]] = {
    "AvgPool2d": ([(2, 6, 6, 3)], [{"kernel": 2}, {"kernel": 3, "stride": 2, "padding": 1}]),
    "BatchNorm2d": ([(2, 3, 3, 4), (5, 4)], [{"channels": 4}, {"channels": 4, "momentum": 0.1, "eps": 1e-3}]),
    "Conv2d": (
        [(2, 8, 8, 16), (1, 5, 5, 16), (3, 9, 12, 16)],
        [
            {"in_channels": 16, "out_channels": 16, "kernel": 3, "padding": 1},
            {"in_channels": 16, "out_channels": 32, "kernel": 1, "stride": 2},
            {"in_channels": 16, "out_channels": 16, "kernel": 3, "groups": 4, "dilation": 2, "padding": 2},
        ],
    ),
    "Dropout": ([(3, 4)], [{"rate": 0.5}]),
    "Flatten": ([(2, 3, 3, 4)], [{}]),
    "GlobalAvgPool2d": ([(2, 3, 3, 4)], [{}]),
    "LeakyReLU": ([(2, 3)], [{"slope": 0.1}]),
    "Linear": ([(4, 3), (2, 5, 3)], [{"in_features": 3, "out_features": 2}]),
    "LocalResponseNorm": ([(2, 3, 3, 8)], [{"size": 5}]),
    "MaxPool2d": ([(2, 6, 6, 3)], [{"kernel": 2}, {"kernel": 3, "stride": 2, "padding": 1}]),
    "Pad2d": ([(2, 6, 6, 3)], [{"padding": 1}, {"padding": ((1, 0), (0, 2))}]),
    "ReLU": ([(2, 3)], [{}]),
    "Sigmoid": ([(2, 3)], [{}]),
    "Softmax": ([(2, 3)], [{}]),
    "SqueezeExcitation": ([(2, 3, 3, 8)], [{"channels": 8, "reduction": 2}]),
}


def of_layer(rng: Rng) -> tuple[str, Call]:
    """A layer that is made and called, in training or not."""
    name = str(rng.choice(list(LAYERS)))
    shapes, choices = LAYERS[name]
    options = dict(choices[int(rng.integers(0, len(choices)))])
    x: Any = numbers(rng, shapes[int(rng.integers(0, len(shapes)))], "float32")
    if rng.integers(0, 2):
        x = changed_array(rng, x)
    if isinstance(x, np.ndarray) and rng.integers(0, 2):
        x = laid_out(rng, x)
    if options and rng.integers(0, 2):
        key = str(rng.choice(list(options)))
        options[key] = changed_option(rng, options[key])
    training, as_it_is = bool(rng.integers(0, 2)), rng.integers(0, 6) == 0

    def call() -> list[Any]:
        minires.manual_seed(0)
        layer = getattr(nn, name)(**options).train(training)
        given = leaf(x) if isinstance(x, np.ndarray) and not as_it_is else x
        results = with_gradients(layer(given), [given])
        return results + [one.grad for one in layer.parameters() if one.grad is not None]

    shown = ", ".join(f"{k}={v!r}" for k, v in options.items())
    return f"nn.{name}({shown}){'' if training else '.eval()'}({describe(x)})", call


OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1, "momentum": 0.9}), ("SGD", {"lr": 0.1, "weight_decay": 0.1, "clip_norm": 1.0}),
    ("Adam", {"lr": 0.01}), ("Adam", {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "clip_norm": 1.0}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
]  # fmt: skip


def of_optimizer(rng: Rng) -> tuple[str, Call]:
    """Steps of an optimiser and an average, with gradients that may not fit."""
    name, choice = OPTIMIZERS[int(rng.integers(0, len(OPTIMIZERS)))]
    options, shapes = dict(choice), [shape(rng)[:4] for _ in range(rng.integers(1, 4))]
    dtype = "float32" if rng.integers(0, 3) else "float64"
    weights = [laid_out(rng, numbers(rng, size, dtype)) for size in shapes]
    gradients: list[Any] = [laid_out(rng, numbers(rng, size, dtype)) for size in shapes]
    if rng.integers(0, 3) == 0:
        gradients[0] = changed_array(rng, gradients[0])
    if rng.integers(0, 2):
        key = str(rng.choice(list(options)))
        options[key] = changed_option(rng, options[key])
    swapped = changed_array(rng, weights[0]) if rng.integers(0, 4) == 0 else None
    decay: Any = 0.5 if rng.integers(0, 3) else changed_option(rng, 0.5)
    replaced = int(rng.integers(0, 3))

    def call() -> list[Any]:
        model = nn.Module()
        model.weights = [nn.Parameter(weight.copy(order="K")) for weight in weights]
        optimizer = getattr(optim, name)(model.named_parameters(), **options)
        average = EMA(model, decay)
        for step in range(3):
            for parameter, gradient in zip(model.weights, gradients, strict=True):
                parameter.grad = gradient
            if step == replaced and swapped is not None:
                model.weights[0].data = swapped.copy() if isinstance(swapped, np.ndarray) else swapped
            optimizer.step()
            average.update()
        return [parameter.data for parameter in model.weights] + list(average.averages.values())

    shown = ", ".join(f"{k}={v!r}" for k, v in options.items())
    arrays = f"{[describe(one) for one in weights]}, gradients {[describe(one) for one in gradients]}"
    more = f", data = {describe(swapped)} at step {replaced}" if swapped is not None else ""
    return f"optim.{name}({shown}), decay={decay!r} of {arrays}{more}", call


# Methods of a tensor, with the number of their arguments; None for any number.
METHODS: dict[str, int | None] = {
    "sum": 1, "mean": 1, "max": 1, "min": 1, "var": 1, "std": 1, "argmax": 1, "any": 1, "all": 1,
    "squeeze": 1, "softmax": 1, "backward": 1, "astype": 1, "to": 1, "split": 1, "expand_dims": 1,
    "repeat": 2, "clip": 2,
    "reshape": None, "transpose": None, "broadcast_to": None, "flatten": 0, "tolist": 0, "item": 0,
    "__getitem__": 1, "__setitem__": 2, "__matmul__": 1, "__add__": 1, "__pow__": 1, "__rtruediv__": 1,
    "__iadd__": 1, "__lt__": 1, "__eq__": 1, "__float__": 0, "__len__": 0, "__bool__": 0, "register_hook": 1,
}  # fmt: skip


def of_tensor(rng: Rng) -> tuple[str, Call]:
    """A method of a tensor with one or two random arguments."""
    name, x = str(rng.choice(list(METHODS))), numbers(rng, shape(rng)[:4], str(rng.choice(DTYPES)))
    x = laid_out(rng, x)
    arguments = [VALUES[int(rng.integers(0, len(VALUES)))] for _ in range(rng.integers(0, 3))]
    if rng.integers(0, 3) == 0 and arguments:
        arguments[0] = numbers(rng, near(rng, x.shape), str(rng.choice(DTYPES)))
    count = METHODS[name]
    if count is not None:
        arguments = (arguments + [0, 1])[:count]

    def call() -> list[Any]:
        tensor = leaf(x)
        result = getattr(tensor, name)(*arguments)
        if isinstance(result, Tensor):
            return with_gradients(result, [tensor])
        return [np.asarray(result)] if isinstance(result, np.ndarray | float | int) else []

    return f"Tensor({describe(x)}).{name}({', '.join(map(describe, arguments))})", call


CASES = cases.all_cases()
KINDS = (of_operation, of_operation, of_operation, of_layer, of_optimizer, of_tensor)


def leaf(array: Any) -> Tensor:
    """A tensor that needs a gradient, where it can."""
    tensor = Tensor(array)
    if tensor.dtype in (np.dtype("float32"), np.dtype("float64")) or backend.is_bfloat16(tensor.dtype):
        tensor.requires_grad = True
    return tensor


def with_gradients(y: Any, given: list[Any]) -> list[Any]:
    """The result and the gradients of what it was computed from."""
    if not isinstance(y, Tensor):
        several = y if isinstance(y, list | tuple) else []
        return [one.data if isinstance(one, Tensor) else one for one in several]
    if y.requires_grad and y.size <= _LARGE:
        y.backward(np.random.default_rng(0).standard_normal(y.shape).astype(y.dtype))
    return [y.data] + [one.grad for one in given if isinstance(one, Tensor) and one.grad is not None]


def describe(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return repr(value)[:60]
    marks = [] if value.flags.c_contiguous else [f"strides {value.strides}"]
    marks += [] if value.flags.writeable else ["read-only"]
    marks += [] if value.flags.aligned else ["not aligned"]
    return " ".join([str(value.dtype), str(value.shape), *marks])


# ------------------------------------------------------------------------------------------------- one case


def outcome(call: Call) -> tuple[str, Any]:
    """What became of a call: ("right", arrays), ("refused", error) or ("unclear", error)."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return "right", call()
        except MiniresError as error:
            return "refused", error
        except Exception as error:
            return "unclear", error


def allowed(description: str, error: Exception) -> bool:
    """What Python itself wants to be raised: a wrong index ends a loop, no operator takes every operand."""
    # A case that makes the call itself may fail before it does.
    before_the_call = Path(traceback.extract_tb(error.__traceback__)[-1].filename).name == "cases.py"
    if isinstance(error, MemoryError) or before_the_call:
        return True
    if isinstance(error, IndexError):
        return "getitem" in description
    is_protocol = ").__" in description or "operand" in str(error)
    return isinstance(error, TypeError) and is_protocol


def _size(array: Any) -> float:
    """The largest finite number of floats; 0 of other arrays."""
    array = np.asarray(array)
    if array.dtype.kind not in "fV" or not array.size:
        return 0.0
    array = array.astype(np.float64)
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def equal(first: Any, second: Any) -> str:
    """In what two results differ; nothing if they are the same up to rounding."""
    if len(first) != len(second):
        return f"{len(first)} and {len(second)} arrays"
    # A gradient that is zero but for rounding is measured beside the other arrays.
    least = max(1e-30, 1e-4 * max((_size(array) for array in second), default=0.0))
    for number, (a, b) in enumerate(zip(first, second, strict=True)):
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"array {number}: {a.dtype} {a.shape} and {b.dtype} {b.shape}"
        if not 0 < a.size <= _LARGE or a.dtype.kind not in "fV":
            continue
        tolerance = CLOSE.get(str(a.dtype), 1e-3)
        a, b = a.astype(np.float64), b.astype(np.float64)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            # Where infinities meet, the order of sums decides between NaN and infinity; and a ReLU between
            # NaN, which gives no gradient, and infinity.
            if number == 0:
                return ""
            continue
        scale = max(least, _size(b))
        if np.abs(a - b).max() > tolerance * scale:
            return f"array {number}: off by {np.abs(a - b).max() / scale:.1e} of the largest number"
    return ""


def crosses_a_kink(description: str, first: Any, second: Any) -> bool:
    """Whether rounding put a result of a ReLU on the other side of its kink: the gradients are others then,
    and both right."""
    if "relu" not in description.lower() or equal(first[:1], second[:1]):
        return False
    return bool(((np.asarray(first[0]) == 0) != (np.asarray(second[0]) == 0)).any())


def run(number: int) -> tuple[str, str]:
    """Case ``number``: its outcome, and what it was."""
    rng = np.random.default_rng(number)
    return judged(*KINDS[int(rng.integers(0, len(KINDS)))](rng))


def judged(description: str, call: Call) -> tuple[str, str]:
    """The outcome of a call, by the kernels and by the reference implementation, and what it was."""
    first, found = outcome(call)
    with backend.reference():
        second, expected = outcome(call)
    for kind, error in ((first, found), (second, expected)):
        if kind == "unclear" and not allowed(description, error):
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            return "unclear", f"{description}\n    {type(error).__name__}: {str(error)[:200]} ({place})"
    if first != second:
        told = [
            f"{kind} {value if isinstance(value, Exception) else ''}"
            for kind, value in ((first, found), (second, expected))
        ]
        return "different", f"{description}\n    kernels: {told[0]}\n    reference: {told[1]}"
    difference = equal(found, expected) if first == "right" else ""
    if difference and not crosses_a_kink(description, found, expected):
        return "different", f"{description}\n    {difference}"
    return ("right" if first == "right" else "refused"), description


# -------------------------------------------------------------------------------------------------- many


Run = Callable[[int], tuple[str, str]]


def _work(run: Run, start: int, stop: int, told: Any) -> None:
    """Run the cases of a range, and tell the outcome of each as soon as it is known."""
    for number in range(start, stop):
        kind, description = run(number)
        told.send((number, kind, description if kind not in FINE else ""))


Show = Callable[[int, str, str], None]


def fuzz(
    start: int, stop: int, show: Show, *, run: Run = run, patience: float = PATIENCE
) -> collections.Counter[str]:
    """Run the cases of a range in a process of their own; one that dies or hangs is counted, and left out."""
    counts: collections.Counter[str] = collections.Counter()
    context = multiprocessing.get_context("spawn")
    number = start
    while number < stop:
        answers, told = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(run, number, stop, told), daemon=True)
        process.start()
        told.close()  # here: when the process ends there is nobody left to tell anything
        while number < stop:
            if answers.poll(patience):
                try:
                    number, kind, description = answers.recv()
                except EOFError:
                    process.join()
                    kind, description = "crash", f"exit code {process.exitcode}"
            else:
                kind, description = "hang", f"no answer in {patience:g} s"
            counts[kind] += 1
            show(number, kind, description)
            number += 1
            if kind in ("crash", "hang"):
                break
        process.kill()
        process.join()
    return counts


def main() -> int:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--start", type=int, default=0, help="the number of the first case")
    parser.add_argument("--only", type=int, help="run this case alone, here, and show what it does")
    parser.add_argument("--show", type=int, default=40, help="how many faults are printed")
    options = parser.parse_args()
    if options.only is not None:
        print(*run(options.only), sep="\n")
        return 0
    faults: list[str] = []

    def show(number: int, kind: str, description: str) -> None:
        if kind not in FINE:
            faults.append(kind)
            if len(faults) <= options.show:
                print(f"{number}: {kind}: {description}", flush=True)

    began = time.time()
    counts = fuzz(options.start, options.start + options.cases, show)
    kinds = (*FINE, "unclear", "different", "crash", "hang")
    result = {"cases": sum(counts.values()), "first": options.start} | {kind: counts[kind] for kind in kinds}
    print(result, f"{time.time() - began:.0f} s")
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
