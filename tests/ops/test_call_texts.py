"""What is said of a call is of that call: its formulas and words have what was given, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from minires import Tensor, ops
from minires.errors import ConfigError
from minires.ops import call_texts
from minires.ops.forms import Values
from minires.ops.registry import Description, declare, describe
from minires.tensor import watching

ONE, TWO = np.ones((1, 4, 4, 2), np.float32), np.ones(2, np.float32)
KERNEL = np.ones((3, 3, 2, 2), np.float32)


def said(call, *, kept=True):
    """What the last operation of a call says of it, where its inputs were kept or not."""
    seen = []
    with watching(seen.append):
        call()
    one = seen[-1]
    known = describe(one.op)
    inputs = {name: x.data if kept else None for name, x in one.inputs.items()}
    return known.said(Values(inputs, one.options, one.y.shape, one.saved, result=known.result))


def norm(**options):
    statistics = {} if options.get("training") else {"running_mean": 0 * TWO, "running_var": TWO}
    return said(lambda: ops.batch_norm(ONE, TWO, TWO, **statistics, **options))


# ---------------------------------------------------------------------------------------------- batch norm


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_shows_the_formula_of_its_mode_and_of_what_it_was_given(training, relu, add):
    found = norm(training=training, relu=relu, add=Tensor(ONE) if add else None)
    z = "gamma * xhat + beta" + " + add" * add
    assert found.math.splitlines() == [
        "mean = mean(x, batch)" if training else "mean = running_mean",
        "var = mean((x - mean) ** 2, batch)" if training else "var = running_var",
        "inv = 1 / sqrt(var + eps)",
        "xhat = (x - mean) * inv",
        f"y = max({z}, 0)" if relu else f"y = {z}",
    ]
    assert found.backward.splitlines() == [
        "g = dy * (y > 0)" if relu else "g = dy",
        *["dadd = g"] * add,
        "dbeta = sum(g, batch)",
        "dgamma = sum(g * xhat, batch)",
        *["slope = (dbeta + xhat * dgamma) / count(batch)"] * training,
        "dx = gamma * inv * (g - slope)" if training else "dx = gamma * inv * g",
    ]
    for words, (of_batch, running, terms, constants) in (
        (found.english, ("this batch", "running", "two more terms", "constants")),
        (found.chinese, ("本批次", "滑动均值", "多出两项", "常数")),
    ):
        assert (of_batch in words.forward, running in words.forward) == (training, not training)
        assert (terms in words.backward, constants in words.backward) == (training, not training)
        assert ("shortcut" in words.forward or "捷径" in words.forward) == add
        assert ("become zero" in words.forward or "变为零" in words.forward) == relu


def test_running_statistics_are_read_in_inference_only():
    known = describe("batch_norm")
    options = {"eps": 0.1, "running_mean": 0 * TWO, "running_var": TWO}
    for training, names in ((True, []), (False, ["running_mean", "running_var"])):
        call = Values({"x": ONE, "gamma": TWO, "beta": TWO}, {**options, "training": training}, ONE.shape)
        assert list(known.reads(call)) == names


# ------------------------------------------------------------------------------------- all other operations

CALLS = [
    (lambda: ops.linear(ONE[0, 0], KERNEL[0, 0]), "y = x @ w", "dx = dy @ w^T, dw = x^T @ dy"),
    (
        lambda: ops.linear(ONE[0, 0], KERNEL[0, 0], TWO),
        "y = x @ w + b", "dx = dy @ w^T, dw = x^T @ dy, db = sum of dy over N",
    ),
    (lambda: ops.relu(ONE), "y = max(x, 0)", "dx = dy where y > 0, else 0"),
    (lambda: ops.relu(ONE, add=Tensor(ONE)), "y = max(x + add, 0)", "dx = dadd = dy where y > 0, else 0"),
    (lambda: ops.add(ONE, ONE), "y = a + b", "da = dy\ndb = dy"),
    (lambda: ops.add(ONE, TWO), "y = a + b", "da = dy\ndb = dy, summed over all places that read b"),
    (
        lambda: ops.mul(TWO, ONE),
        "y = a * b", "da = dy * b, summed over all places that read a\ndb = dy * a",
    ),
    (lambda: ops.clip(ONE, 0.0, None), "y = max(x, low)", "dx = dy if low <= x else 0"),
    (lambda: ops.clip(ONE, None, 0.0), "y = min(x, high)", "dx = dy if x <= high else 0"),
    (
        lambda: ops.clip(ONE, 0.0, 1.0),
        "y = min(max(x, low), high)", "dx = dy if low <= x and x <= high else 0",
    ),
    (
        lambda: ops.concat([Tensor(ONE), Tensor(ONE)]),
        "y = [x1, x2]", "dx1, dx2 = the parts of dy that came from x1, x2",
    ),
    (
        lambda: ops.matmul(np.ones((3, 2, 2)), np.ones((2, 2))),
        "y = a @ b", "da = dy @ b^T\ndb = a^T @ dy, summed over the matrices that met b",
    ),
    (
        lambda: ops.cross_entropy(ONE[0, 0], [0, 1, 1, 0]),
        "p = softmax(logits), t = 1 for the label, else 0\nlosses = -sum over k of t[k] * log p[k]\n"
        "loss = sum of losses / N",
        "dlogits = (p - t) * dloss / N",
    ),
    (
        lambda: ops.cross_entropy(ONE[0, 0], ONE[0, 0] / 2, label_smoothing=0.1, reduction="sum"),
        "p = softmax(logits), t = labels\nt = (1 - label_smoothing) * t + label_smoothing / K\n"
        "losses = -sum over k of t[k] * log p[k]\nloss = sum of losses",
        "dlogits = (p - t) * dloss",
    ),
    (
        lambda: ops.cross_entropy(ONE[0, 0], [0, 1, 1, 0], weight=TWO, ignore_index=0),
        "p = softmax(logits), t = 1 for the label, else 0\n"
        "losses = -sum over k of weight[k] * t[k] * log p[k]\nlosses = 0 where the label is ignore_index\n"
        "loss = sum of losses / sum of weight[label] of the rows that are not ignored",
        "dlogits = (p * sum over k of u - u) * dloss / sum of weight[label]\nwith u = weight * t\n"
        "and 0 in the rows that are ignored",
    ),
    (
        lambda: ops.nll_loss(ONE[0, 0], [0, 1, 1, 0], reduction="none"),
        "losses[n] = -log_p[n, label of n]\nloss = losses",
        "dlog_p[n, label of n] = -dloss, elsewhere 0",
    ),
]  # fmt: skip


@pytest.mark.parametrize("call, math, backward", CALLS)
def test_a_formula_names_what_was_given_and_nothing_else(call, math, backward):
    found = said(call)
    assert (found.math, found.backward) == (math, backward)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("labels", [[0, 1, 1, 0], ONE[0, 0] / 2], ids=["numbers", "probabilities"])
def test_a_loss_whose_scores_were_not_kept_says_the_same(labels, reduction):
    def loss():
        ops.cross_entropy(ONE[0, 0], labels, reduction=reduction)

    assert said(loss, kept=False) == said(loss)
    assert ("t = labels" in said(loss).math) == isinstance(labels, np.ndarray)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_convolution_shows_bias_relu_and_border_only_where_it_has_them(bias, relu, padding):
    found = said(lambda: ops.conv2d(ONE, KERNEL, TWO if bias else None, relu=relu, padding=padding))
    whole = found.math + found.backward
    assert ("b[o]" in found.math, "db[o]" in found.backward) == (bias, bias)
    assert ("max(y, 0)" in found.math, "y is not above 0" in found.backward) == (relu, relu)
    assert ("zeros outside" in found.math, "- top" in whole, "- left" in whole) == (bool(padding),) * 3
    assert "stride" not in whole and "dilation" not in whole and "group" not in whole
    for words, bias_word, relu_word in ((found.english, "bias", "ReLU"), (found.chinese, "偏置", "ReLU")):
        assert (bias_word in words.forward, bias_word in words.backward) == (bias, bias)
        assert (relu_word in words.backward) == relu


def test_strides_dilations_and_groups_stand_in_the_formula_of_those_who_have_them():
    wide = np.ones((1, 9, 9, 2), np.float32)
    found = said(lambda: ops.conv2d(wide, KERNEL[:, :, :1], stride=2, dilation=(1, 2), groups=2)).math
    assert "x[n, i*stride + kh*dilation, j*stride + kw*dilation, c]" in found and "group of o" in found
    assert "x[n, i*stride + kh, j*stride + kw, c]" in said(lambda: ops.max_pool2d(wide, 3)).math
    transposed = said(lambda: ops.conv_transpose2d(ONE, KERNEL)).math
    assert "b[o]" not in transposed and "[n, oh, ow] = [n, i + kh, j + kw]" in transposed


@pytest.mark.parametrize(
    "options, count, english",
    [
        ({}, "KH*KW", "The mean of the numbers under each window."),
        ({"padding": 1}, "the number of real pixels under it", "do not count."),
        ({"padding": 1, "count_padding": True}, "KH*KW", "the zeros around the picture count."),
    ],
)
def test_an_average_pool_says_what_its_mean_is_over(options, count, english):
    found = said(lambda: ops.avg_pool2d(ONE, 2, **options))
    assert found.math.splitlines()[1] == f"count = {count}" and found.english.forward.endswith(english)


def test_dropout_says_nothing_in_inference_because_it_does_nothing():
    seen = []
    rng = np.random.default_rng(0)
    with watching(seen.append):
        ops.dropout(ONE, 0.5, rng=rng, training=False)
    assert seen == []
    assert said(lambda: ops.dropout(ONE, 0.5, rng=rng)).math.startswith("y = x * mask, where mask is 0")


def test_what_a_tape_has_not_kept_is_said_all_the_same():
    call = Values({"x": None, "gamma": None, "beta": None}, {"training": False, "eps": 1e-5}, ONE.shape)
    assert "mean = running_mean" not in describe("batch_norm").said(call).math  # it is not among the options
    call.options["running_mean"] = call.options["running_var"] = TWO
    assert describe("batch_norm").said(call).math.startswith("mean = running_mean\nvar = running_var\n")


# ------------------------------------------------------------------------------------------- the language


@pytest.mark.parametrize(
    "text, expected",
    [
        ("x{b? + b}", "x"),
        ("x{a? + a}", "x + a"),
        ("{mode == \"edge\"?copies|zeros}", "copies"),
        ("{low == none?no bound|{low}}", "no bound"),
        ("{high == none?no bound|{high}}", "0"),
        ("{padding > 0?a border|none}", "a border"),
        ("{padding > 2?a border|none}", "none"),
        ("{high < low?less|cannot be said}", "cannot be said"),
        ("first\n{b?second}\nthird", "first\nthird"),
        ("{a and not b?{mode}|}", "edge"),
        ("{inputs}: {gradients} of {ndim} axes{stretched?, stretched}", "a, x: da, dx of 2 axes, stretched"),
        ("the set {x} and {y} stay", "the set {x} and {y} stay"),
    ],
)
def test_conditions_ask_for_inputs_and_options(text, expected):
    options = {"mode": "edge", "low": None, "high": 0, "padding": ((0, 1), (2, 0))}
    call = Values({"a": TWO, "x": ONE[0, 0]}, options, (4, 2))
    assert call_texts.of_call(text, call_texts.facts_of(call, None)) == expected


def test_help_shows_both_sides_or_what_is_written_for_it():
    assert call_texts.of_all("y = x{b? + b}") == "y = x + b"
    assert call_texts.of_all("y / {counted?KH*KW|inside}") == "y / KH*KW if counted else inside"
    assert call_texts.of_all("{relu?then ReLU||with relu then ReLU}") == "with relu then ReLU"


@pytest.mark.parametrize(
    "text, why",
    [("x{b +? + b}", "invalid syntax"), ("{a?1|2|3|4}", "there are 4 parts"), ("{f(a)?1}", "cannot be read")],
)
def test_a_text_that_cannot_be_read_is_refused_where_it_is_declared(text, why):
    with pytest.raises(ConfigError, match=why):
        declare(Description(name="unreadable", math=text, backward="dx = dy"))
    assert describe("unreadable").function is None
