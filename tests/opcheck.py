"""The one harness through which every operation goes, case by case (minires/ops/cases.py).

``check`` asks of an operation, on one device:

* its gradient agrees with finite differences, with a random upstream gradient and a layer before and after;
* every implementation gives what the reference implementation gives, in float32 and in float64;
* dtypes and shapes are kept, inputs are left unchanged, no two gradients share memory;
* inputs and upstream gradients may lie in memory in any order;
* what it declares as saved is what its backward keeps alive;
* a second backward over a retained graph, with twice the upstream gradient, gives twice the gradients;
* a gradient that is not asked for changes nothing about the others.

``check_bfloat16`` asks what is right of the others in bfloat16, and holds each number to the reference
implementation in float64 on the same inputs, up to the roundings that are allowed.

``unread`` tells what an operation saves for nothing.

``check_against_torch`` holds it against PyTorch, where that is installed.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from minires import backend
from minires.errors import MiniresError
from minires.ops import cases
from minires.ops.registry import Case
from minires.tape import reachable
from minires.tensor import Tensor

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = ("float32", "float64")
# Relative to the largest number in the array: a few hundred roundings.
CLOSE = {"float32": 3e-5, "float64": 1e-12}

# Elements of an input whose gradients are measured in the fast implementation: all of them were held to the
# reference implementation, of which every element is measured.
MOST = 200

# Relative to each number: rounding it to bfloat16 once, to 8 significant bits.
ROUNDING = 2.0**-8
# The inputs that stay float32 beside activations in bfloat16. "w" is rounded, as a factor of a product.
PARAMETERS = {"conv2d": "wb", "conv_transpose2d": "wb", "linear": "wb", "batch_norm": ("gamma", "beta")}

Arrays = dict[str, Any]


def of(*ops: str) -> Any:
    """Parametrise a test over all cases of these operations, as ``case``."""
    found = [case for op in ops for case in cases.all_cases()[op]]
    return pytest.mark.parametrize("case", found, ids=str)


on_devices = pytest.mark.parametrize("device", DEVICES)


def check(case: Case, device: str = "cpu", *, implementations: bool = True) -> None:
    """All of the above. Raises: AssertionError or GradcheckError at the first thing that is wrong."""
    need_device(device)
    if implementations:
        check_implementations(case, device)
    check_layouts(case, device)
    check_upstream_layouts(case, device)
    check_memory(case, device)
    check_saved(case, device)
    check_single_gradients(case, device)
    most = MOST if implementations else None
    cases.check(case, elements=most, raise_on_fail=True, device=device)


def need_device(device: str) -> None:
    if device != "cpu":
        try:
            backend.cupy()
        except MiniresError as error:
            pytest.skip(str(error))


# ---------------------------------------------------------------------------------------------- pieces


def arrays_of(case: Case, dtype: str = "float64", device: str = "cpu") -> Arrays:
    """The inputs of a case; in bfloat16 its parameters are float32."""
    stored = {name: dtype for name in case.inputs}
    if dtype == "bfloat16":
        stored |= {name: "float32" for name in PARAMETERS.get(case.op, ()) if name in stored}
        backend.bfloat16()  # now NumPy knows the name
    arrays = case.arrays().items()
    return {name: backend.to_device(array.astype(stored[name]), device) for name, array in arrays}


def upstream(y: Tensor) -> Any:
    """A random upstream gradient of the shape, dtype and device of ``y``."""
    dy = np.random.default_rng(7).standard_normal(y.shape).astype(y.dtype)
    return backend.to_device(np.asarray(dy), y.device)


def run(case: Case, arrays: Mapping[str, Any], make_dy: Callable[[Tensor], Any] = upstream) -> Arrays:
    """Forward and backward: the output as "y", and the gradient of every input by its name."""
    leaves = {name: Tensor(array, requires_grad=True) for name, array in arrays.items()}
    y = case(*leaves.values())
    result = {"y": y.data}
    y.backward(make_dy(y))
    for name, leaf in leaves.items():
        assert leaf.grad is not None, f"{case}: no gradient arrived at {name}"
        assert leaf.grad.shape == leaf.shape, f"{case}: {name} {leaf.shape}, gradient {leaf.grad.shape}"
        result[name] = leaf.grad
    return result


def assert_close(got: Any, expected: Any, relative: float, what: str) -> None:
    got, expected = (backend.to_device(array, "cpu") for array in (got, expected))
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    if expected.size == 0:
        return
    # Inputs and upstream gradients are of the size of one: what is below 0.01 is held to that.
    scale = max(float(np.abs(expected).max()), 0.01)
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    worst = np.unravel_index(int(difference.argmax()), difference.shape)
    assert difference.max() <= relative * scale, (
        f"{what}: {got[worst]!r} at {tuple(map(int, worst))}, expected {expected[worst]!r} "
        f"(off by {difference.max() / scale:.1e} of the largest, allowed {relative:.0e})"
    )


def assert_all_close(got: Arrays, expected: Arrays, relative: float, what: str) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        label = "output" if name == "y" else f"gradient of {name}"
        assert_close(got[name], expected[name], relative, f"{what}, {label}")


def check_implementations(case: Case, device: str = "cpu") -> None:
    """Fast against reference in both dtypes, and float32 against float64."""
    exact = None
    for dtype in reversed(DTYPES):
        arrays = arrays_of(case, dtype, device)
        results = []
        for implementation in (nullcontext, backend.reference):
            with implementation():
                results.append(run(case, arrays))
            for name, array in results[-1].items():
                assert array.dtype == dtype, f"{case}: {name} became {array.dtype} from {dtype}"
        fast, reference = results
        assert_all_close(fast, reference, CLOSE[dtype], f"{case}, {dtype}, fast against reference")
        if exact is None:
            exact = reference
        assert_all_close(reference, exact, CLOSE["float32"], f"{case}, {dtype} against float64")


def _every_second(array: Any) -> Any:
    xp = backend.array_module(array)
    larger = xp.full(tuple(2 * size for size in array.shape), xp.nan, array.dtype)
    view = larger[..., *(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def _backwards(array: Any) -> Any:
    turned = tuple(slice(None, None, -1) for _ in array.shape)
    return array[turned].copy()[turned] if array.ndim else array


def _columns_first(array: Any) -> Any:
    return array.T.copy().T


LAYOUTS = {"every second": _every_second, "backwards": _backwards, "columns first": _columns_first}


def check_layouts(case: Case, device: str = "cpu") -> None:
    """Inputs whose memory is not in order give the same result."""
    arrays = arrays_of(case, device=device)
    for implementation in (nullcontext, backend.reference):
        with implementation():
            expected = run(case, arrays)
            for name, layout in LAYOUTS.items():
                laid = {key: layout(array) for key, array in arrays.items()}
                got = run(case, laid)
                assert_all_close(got, expected, CLOSE["float64"], f"{case}, inputs {name}")


def check_upstream_layouts(case: Case, device: str = "cpu") -> None:
    """Upstream gradients whose memory is not in order, or is one number read everywhere, are accepted."""
    arrays = arrays_of(case, device=device)

    def constant(y: Tensor) -> Any:
        xp = backend.array_module(y.data)
        return xp.broadcast_to(xp.asarray(0.75, dtype=y.dtype), y.shape)

    for implementation in (nullcontext, backend.reference):
        with implementation():
            expected = run(case, arrays)
            for name, layout in LAYOUTS.items():
                got = run(case, arrays, lambda y, layout=layout: layout(upstream(y)))
                assert_all_close(got, expected, CLOSE["float64"], f"{case}, upstream {name}")
            expected = run(case, arrays, lambda y: constant(y).copy())
            got = run(case, arrays, constant)
            assert_all_close(got, expected, CLOSE["float64"], f"{case}, upstream broadcast")


def check_memory(case: Case, device: str = "cpu", dtype: str = "float64") -> None:
    """Inputs and upstream gradient stay as they were, gradients share memory with nothing, and a second
    backward over a retained graph is as good as the first."""
    for implementation in (nullcontext, backend.reference):
        arrays = arrays_of(case, dtype, device)
        before = {name: array.copy() for name, array in arrays.items()}
        leaves = {name: Tensor(array, requires_grad=True) for name, array in arrays.items()}
        with implementation():
            y = case(*leaves.values())
            dy = upstream(y)
            dy_before, y_before = dy.copy(), y.data.copy()
            y.backward(dy, retain_graph=True)
            _check_unchanged(case, (dy, dy_before), (y.data, y_before), arrays, before)  # the tape looks, too
            first = {name: leaf.grad for name, leaf in leaves.items()}
            first_before = {name: gradient.copy() for name, gradient in first.items()}
            for leaf in leaves.values():
                leaf.grad = None
            y.backward(2 * dy)
        xp = backend.array_module(dy)
        _check_unchanged(case, (dy, dy_before), (y.data, y_before), arrays, before)
        for name in arrays:
            kept = xp.array_equal(first[name], first_before[name])
            assert kept, f"{case}: the gradient of {name} was changed by a later backward"
            assert_close(leaves[name].grad, 2 * first[name], 1e-14, f"{case}, second backward, {name}")
        others = {"dy": dy, "y": y.data, **{f"input {name}": array for name, array in arrays.items()}}
        for name, gradient in first.items():
            for other, array in {**others, **{n: g for n, g in first.items() if n != name}}.items():
                shared = gradient.size and xp.shares_memory(gradient, array)
                assert not shared, f"{case}: the gradient of {name} shares its memory with {other}"


def _check_unchanged(
    case: Case, dy: tuple[Any, Any], y: tuple[Any, Any], arrays: Arrays, before: Arrays
) -> None:
    """Each array is as it was; of dy and y it is given after them."""
    xp = backend.array_module(*dy)
    assert xp.array_equal(*dy), f"{case}: the upstream gradient was changed"
    assert xp.array_equal(*y), f"{case}: the output was changed by the backward"
    for name, array in arrays.items():
        assert xp.array_equal(array, before[name]), f"{case}: the input {name} was changed"


def check_saved(case: Case, device: str = "cpu", dtype: str = "float64") -> None:
    """The arrays that an operation declares as saved are those that its backward keeps alive: no more, which
    would take memory, and no less, which a summary and the debugger would not know of."""
    arrays = arrays_of(case, dtype, device)
    for implementation in (nullcontext, backend.reference):
        with implementation():
            leaves = [Tensor(array, requires_grad=True) for array in arrays.values()]
            y = case(*leaves)
        for node in reachable(y.node):
            held = {_memory(array) for array in _held(node.backward)}
            saved = {_memory(array) for array in node.saved.values() if array.ndim}
            assert held == saved, f"{case}: {node} saved {sorted(node.saved)}, which is not what it holds"
            for name, array in node.saved.items():
                owners = {**dict(zip(node.names, node.parents, strict=True)), "y": node}
                owner = owners.get(name)
                fits = owner is None or array.size == np.prod(owner.shape, dtype=int)
                assert fits, f"{case}: {node} saved {name} {array.shape}, which has another size"


def unread(op: str, device: str = "cpu", dtype: str = "float64") -> set[tuple[str, str]]:
    """What an operation saves and never reads: the array, and the input whose gradient alone is asked for, or
    "all". An array counts as read if in some case the gradients are others where it is spoilt."""
    read: dict[tuple[str, str], bool] = {}
    for case in cases.all_cases()[op]:
        arrays = arrays_of(case, dtype, device)
        subsets = {"all": {*arrays}, **({name: {name} for name in arrays} if len(arrays) > 1 else {})}
        for implementation, asked in itertools.product((nullcontext, backend.reference), subsets):
            wanted = subsets[asked]
            with implementation():
                expected, places = _spoilt(case, arrays, wanted, None)
                for place in places:
                    got, _ = _spoilt(case, arrays, wanted, place)
                    key = f"{place[1]}.{place[2]}", asked
                    read[key] = read.get(key, False) or any(
                        not np.array_equal(backend.to_device(got[name], "cpu"), backend.to_device(one, "cpu"))
                        for name, one in expected.items()
                    )
    return {key for key, was in read.items() if not was}


def _spoilt(case: Case, arrays: Arrays, wanted: set[str], place: Any) -> tuple[Arrays, list[Any]]:
    """The gradients, with NaN in the saved array at ``place``, and all places that could be spoilt."""
    leaves = {name: Tensor(array.copy(), requires_grad=name in wanted) for name, array in arrays.items()}
    y, places = case(*leaves.values()), []
    for number, node in enumerate(sorted(reachable(y.node), key=lambda node: node.number)):
        for name, array in node.saved.items():
            if array.ndim and array.size and backend.is_float(array.dtype):
                places.append((number, node.op, name))
                if places[-1] == place:
                    array[...] = np.nan
                    del node.samples[name]  # or the tape would notice
    y.backward(upstream(y))
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}, places


def _held(value: Any) -> Iterator[Any]:
    """The arrays with axes that a backward function, or what stands in it, keeps alive."""
    if hasattr(value, "dtype") and hasattr(value, "strides") and value.ndim:
        yield value
    elif isinstance(value, Tensor):
        yield from _held(value.data)
    elif isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            yield from _held(cell.cell_contents)
    elif isinstance(value, functools.partial):
        yield from _held((*value.args, *value.keywords.values()))
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _held(part)


def _memory(array: Any) -> int:
    """Where the memory that ``array`` is a view of lies."""
    while getattr(array, "base", None) is not None and hasattr(array.base, "dtype"):
        array = array.base
    return id(array)


def check_single_gradients(case: Case, device: str = "cpu", dtype: str = "float64") -> None:
    """The gradient of one input alone is what it is when all are asked for, and only it arrives."""
    arrays = arrays_of(case, dtype, device)
    for implementation in (nullcontext, backend.reference):
        with implementation():
            everything = run(case, arrays)
            for name in arrays:
                leaves = {n: Tensor(array, requires_grad=n == name) for n, array in arrays.items()}
                y = case(*leaves.values())
                y.backward(upstream(y))
                for other, leaf in leaves.items():
                    assert (leaf.grad is None) == (other != name), f"{case}: gradient of {other} for {name}"
                assert_close(leaves[name].grad, everything[name], CLOSE["float64"], f"{case}, {name} alone")
            plain = case(*(Tensor(array) for array in arrays.values()))
            assert not plain.requires_grad, f"{case}: a gradient is recorded that nobody needs"


def check_bfloat16(case: Case, device: str = "cpu") -> None:
    """Dtypes, memory, single gradients; and each number of the output and of the gradients against float64.

    The reference gets the very same inputs, rounded as they are. So a number that is stored in bfloat16
    may be off by its own rounding, and by what float32 makes of the sums. In some operations something on the
    way is rounded, too: the products of ``mul`` that are summed up where an operand was broadcast; and, with
    kernels, the products of ``conv2d`` and of its adjoint ``conv_transpose2d`` before a bias is added and
    before columns are added up. What these roundings make together is at most ROUNDING times the result that
    absolute values give.
    """
    check_memory(case, device, "bfloat16")
    check_single_gradients(case, device, "bfloat16")
    arrays = arrays_of(case, "bfloat16", device)

    def make_dy(y: Tensor) -> Any:
        return upstream(y).astype(backend.bfloat16()).astype(y.dtype)

    got = run(case, arrays, make_dy)
    exact = {name: array.astype(np.float64) for name, array in arrays.items()}
    if "w" in PARAMETERS.get(case.op, ()):
        exact["w"] = arrays["w"].astype(backend.bfloat16()).astype(np.float64)
    with backend.reference():
        expected = run(case, exact, make_dy)
        between = {name: np.zeros(()) for name in expected}
        if case.op in ("mul", "conv2d", "conv_transpose2d"):
            without_relu = {name: option for name, option in case.options.items() if name != "relu"}
            absolute = {name: abs(array) for name, array in exact.items()}
            linear = dataclasses.replace(case, options=without_relu)
            between = run(linear, absolute, lambda y: abs(make_dy(y)))
    assert got.keys() == expected.keys()
    for name, array in got.items():
        of_output = "float32" if case.op in ("cross_entropy", "nll_loss") else "bfloat16"
        stored = of_output if name == "y" else arrays[name].dtype
        assert array.dtype == stored, f"{case}: {name} is {array.dtype}, not {stored}"
        on_cpu = (backend.to_device(a, "cpu") for a in (array, expected[name], between[name]))
        number, right, more = (a.astype(np.float64) for a in on_cpu)
        assert number.shape == right.shape, f"{case}: {name}"
        allowed = np.full(right.shape, CLOSE["float32"] * max(float(abs(right).max(initial=0)), 0.01))
        if backend.is_bfloat16(array.dtype):
            allowed += ROUNDING * (abs(right) + abs(more))
        worst = (abs(number - right) / allowed).max(initial=0)
        assert worst <= 1, f"{case}: {name} is off by {worst:.2f} times what is allowed"


def pair(value: Any) -> tuple[Any, Any]:
    return value if isinstance(value, tuple) else (value, value)


def four_sides(
    picture: Any, kernel: Any, stride: Any, padding: Any, dilation: Any = 1
) -> list[tuple[int, int]]:
    """[(top, bottom), (left, right)] of a window's padding, written once more and independently."""
    gaps = zip(pair(kernel), pair(dilation), strict=True)
    kernel = tuple(k + (k - 1) * (apart - 1) for k, apart in gaps)  # what it reaches over
    if padding in ("same", "same_lower"):
        sizes = zip(picture, pair(kernel), pair(stride), strict=True)
        missing = [max(0, (-(-size // s) - 1) * s + k - size) for size, k, s in sizes]
        return [(m // 2, m - m // 2) if padding == "same" else (m - m // 2, m // 2) for m in missing]
    if padding == "ceil":
        sides = []
        for size, k, s in zip(picture, pair(kernel), pair(stride), strict=True):
            starts = [0, *(at for at in range(s, size, s) if at - s + k < size)]  # while pixels are left
            sides.append((0, max(0, starts[-1] + k - size) if k - size < s else 0))
        return sides
    return [pair(side) for side in pair(padding)]


def check_against_torch(case: Case, reference: Callable[..., Any]) -> None:
    """``reference(*torch_tensors, **options)``, channels last too, gives the same output and gradients."""
    torch = pytest.importorskip("torch")
    for dtype in DTYPES:
        arrays = arrays_of(case, dtype)
        ours = run(case, arrays)
        leaves = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
        y = reference(*leaves.values(), **case.options)
        y.backward(torch.tensor(upstream(Tensor(ours["y"]))))
        theirs = {"y": y.detach().numpy()}
        for name, leaf in leaves.items():
            theirs[name] = np.zeros_like(arrays[name]) if leaf.grad is None else leaf.grad.numpy()
        assert_all_close(ours, theirs, {"float32": 1e-4, "float64": 1e-11}[dtype], f"{case}, {dtype}, torch")
