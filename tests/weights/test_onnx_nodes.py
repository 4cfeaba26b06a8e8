"""ONNX's own tests of its operators, computed by minires.

The package onnx ships tests of single operators: a node, its inputs, and the outputs that they must give. The
table in tests/onnx_operators.py says how each operator is written with operations of minires; the tests that
cannot be written so are in NOT_EXPRESSED, with the reason. That is exact: a test that fails must be listed,
and one that is listed must fail, so the list can only become shorter.

A test applies to minires if all of this holds:

* it is one node of ONNX's main domain (a test whose name has ``_expanded`` is the same node once more,
  written as several), of an opset that was known when this was written;
* ONNX defines its operator under math, nn, reduction, tensor or logical, and it is not of a kind that minires
  is not about, see OTHER_KINDS;
* its first input, or the first behind a condition, is float32, float64 or bfloat16, as are all other floats
  that go in and come out. Integers may be beside them, as axes, shapes, indices or labels.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from onnx_operators import OPERATORS

from minires import Tensor, backend, no_grad, ops

onnx = pytest.importorskip("onnx")

NEWEST_OPSET = 28
DEFINED_UNDER = {"math", "nn", "reduction", "tensor", "logical"}
OTHER_KINDS = {
    "sequences and text": (
        "Attention", "CausalConvWithState", "LinearAttention", "ReverseSequence", "RotaryEmbedding",
        "TensorScatter", "TfIdfVectorizer",
    ),
    "signals": ("DFT", "MelWeightMatrix", "STFT"),
    "resampling": ("AffineGrid", "DeformConv", "GridSample", "Resize", "Upsample"),
    "quantised numbers": ("QLinearConv", "QLinearMatMul"),
    "sorting": ("TopK", "Unique"),
    "linear algebra": ("Det",),
    "what is asked is not its numbers": ("BitCast", "OneHot", "Shape", "Size"),
}  # fmt: skip

# -------------------------------------------------------------------------------- what cannot be expressed

NOT_EXPRESSED: dict[str, tuple[str, ...]] = {
    "there are no functions of angles": (
        "test_acos_example", "test_acos", "test_asin_example", "test_asin", "test_atan_example", "test_atan",
        "test_cos_example", "test_cos", "test_sin_example", "test_sin", "test_tan_example", "test_tan",
    ),
    "there is no rounding: its gradient is zero": (
        "test_ceil_example", "test_ceil", "test_floor_example", "test_floor", "test_mod_mixed_sign_float64",
        "test_mod_mixed_sign_float32", "test_mod_float64_mixed_sign_fmod_0",
        "test_mod_float32_mixed_sign_fmod_0", "test_mod_float_edge_cases_fmod_0_float32",
        "test_mod_float_edge_cases_fmod_0_float64", "test_round",
    ),
    "pictures have two axes": (
        "test_col2im_5d", "test_convtranspose_3d",
    ),
    "the mask is drawn by a generator that NumPy calls legacy": (
        "test_training_dropout_default", "test_training_dropout_default_mask", "test_training_dropout",
        "test_training_dropout_mask",
    ),
    "there is no error function": (
        "test_erf", "test_gelu_default_1", "test_gelu_default_2",
    ),
    "max_pool2d keeps to itself where the maxima were": (
        "test_maxpool_with_argmax_2d_precomputed_pads", "test_maxpool_with_argmax_2d_precomputed_strides",
    ),
    "the largest of no numbers is an error": (
        "test_reduce_max_empty_set", "test_reduce_min_empty_set",
    ),
}  # fmt: skip

# --------------------------------------------------------------------------------------------- the tests


def is_float(dtype: np.dtype[Any]) -> bool:
    return dtype in (np.float32, np.float64) or dtype.name == "bfloat16"


def applies(case: Any) -> bool:
    """Whether minires should be able to do this; see the head of this file."""
    node, *more = case.model.graph.node
    (opset,) = [one.version for one in case.model.opset_import if one.domain == node.domain]
    if more or node.domain or opset > NEWEST_OPSET or "_expanded" in case.name:
        return False
    if any(node.op_type in operators for operators in OTHER_KINDS.values()):
        return False
    group = onnx.defs.get_schema(node.op_type).file.replace("\\", "/").split("/defs/")[-1].split("/")[0]
    inputs, outputs = case.data_sets[0]
    arrays = [*inputs, *outputs]
    if group not in DEFINED_UNDER or not inputs or not all(hasattr(one, "dtype") for one in arrays):
        return False
    first = next((one for one in inputs if one.dtype != bool), inputs[0])
    return is_float(first.dtype) and all(one.dtype.kind in "iub" or is_float(one.dtype) for one in arrays)


def attributes(node: Any) -> dict[str, Any]:
    values = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def problem(case: Any) -> str | None:
    """What is wrong with what minires gives, or None."""
    (node,), (inputs, outputs) = case.model.graph.node, case.data_sets[0]
    given = iter(np.asarray(one) for one in inputs)
    arrays = [next(given) if name else None for name in node.input]
    xs = [Tensor(x) if x is not None and is_float(x.dtype) else x for x in arrays]
    options = attributes(node) | ({"outputs": len(outputs)} if node.op_type == "Split" else {})
    try:
        with no_grad(), np.errstate(all="ignore"):
            results = OPERATORS[node.op_type](*xs, **options)
    except Exception as error:  # whatever stops it, it is not expressed
        return f"{type(error).__name__}: {error}"
    results = results if isinstance(results, tuple) else (results,)
    if len(results) < len(outputs):
        return f"{len(results)} results instead of {len(outputs)}"
    for result, right in zip(results, map(np.asarray, outputs), strict=False):
        array = result.numpy() if isinstance(result, Tensor) else np.asarray(result)
        if (array.dtype, array.shape) != (right.dtype, right.shape):
            return f"{array.dtype} {array.shape} instead of {right.dtype} {right.shape}"
        kind = np.float64 if is_float(right.dtype) else right.dtype
        pair = array.astype(kind), right.astype(kind)
        if not np.allclose(*pair, rtol=case.rtol, atol=case.atol, equal_nan=True):
            return f"off by {np.nanmax(np.abs(pair[0] - pair[1]))}"
    return None


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    """The tests of the installed onnx that apply."""
    from onnx.backend.test.loader import load_model_tests

    backend.bfloat16()
    state = np.random.get_state()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    np.random.set_state(state)
    return [case for case in found if applies(case)]


@pytest.fixture(scope="module")
def problems(cases: list[Any]) -> dict[str, str]:
    """What is wrong, by the name of the test."""
    found = {case.name: problem(case) for case in cases}
    return {name: text for name, text in found.items() if text is not None}


LISTED = {name for names in NOT_EXPRESSED.values() for name in names}


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_gives_what_onnx_expects(operator, cases, problems):
    names = [case.name for case in cases if case.model.graph.node[0].op_type == operator]
    assert names, "no test of onnx applies: this row of the table stands for nothing"
    assert not {name: problems[name] for name in names if name in problems and name not in LISTED}


def test_what_cannot_be_expressed_is_listed_and_nothing_else(cases, problems):
    names = {case.name for case in cases}
    assert {name: text for name, text in problems.items() if name not in LISTED} == {}
    assert LISTED & names - set(problems) == set(), "these can be expressed now: take them off the list"


def test_the_list_is_short(cases):
    assert len(cases) >= 351
    assert sum(map(len, NOT_EXPRESSED.values())) == len(LISTED) <= 40


@pytest.mark.parametrize(
    ("operator", "text"),
    [
        (lambda x: -x, "off by"),
        (lambda x: ops.relu(ops.astype(x, "float64")), "float64 (3, 4, 5) instead of float32 (3, 4, 5)"),
        (lambda x: ops.relu(x)[0], "float32 (4, 5) instead of float32 (3, 4, 5)"),
        (lambda x: (), "0 results instead of 1"),
        (lambda x: ops.relu(x, alpha=1), "TypeError: "),
    ],
)
def test_a_wrong_operator_is_noticed(monkeypatch, cases, operator, text):
    (case,) = [case for case in cases if case.name == "test_relu"]
    assert problem(case) is None
    monkeypatch.setitem(OPERATORS, "Relu", operator)
    assert problem(case).startswith(text)
