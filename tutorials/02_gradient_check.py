"""
02 · Checking a gradient without being fooled
=============================================

You measure gradients with finite differences, watch a wrong backward pass the usual check, and learn what a
check needs so that it cannot be fooled.

A wrong gradient rarely crashes. The loss may even fall for a while, and you look for the fault in the
learning rate. So every backward in minires is compared with measured slopes. This lesson shows how, and which
mistakes in the *check* let a wrong gradient through. It builds on lesson 01: the tape, ``record``, the
upstream gradient ``dy``.
"""

# %%
# The imports: an operation with a known backward (batch norm), the function that checks, and ``record`` to
# build wrong operations on purpose.

import matplotlib.pyplot as plt
import numpy as np

from minires import GradcheckError, Tensor, gradcheck
from minires.exercises import check
from minires.ops.batch_norm import batch_norm
from minires.ops.relu import relu
from minires.ops.softmax import softmax
from minires.tensor import record

# %%
# One slope, measured
# -------------------
#
# The slope of f at x can be measured: move x by a small step h and see how much f changes. Moving to one side
# is the *forward difference*; moving to both sides is the *central difference*::
#
#     forward   (f(x + h) - f(x)) / h               error grows like h
#     central   (f(x + h) - f(x - h)) / (2 h)       error grows like h^2
#
# Take f = exp at x = 1, where the true slope is known: it is exp(1). Try all steps from 1 down to 1e-12, with
# numbers of 64 and of 32 bits.


def forward_difference(f, x, h):
    return (f(x + h) - f(x)) / h


def central_difference(f, x, h):
    return (f(x + h) - f(x - h)) / (2 * h)


steps = 10.0 ** np.arange(0, -12.5, -0.5)


def errors(difference, dtype):
    """The relative error of the measured slope of exp at 1, for every step."""
    measured = difference(np.exp, dtype(1), steps.astype(dtype))
    return abs(measured.astype(np.float64) - np.e) / np.e


forward, central = errors(forward_difference, np.float64), errors(central_difference, np.float64)
print(f"from h = {steps[4]:.2f} to h = {steps[2]:.1f}", end=", ")
print(
    f"forward error: {forward[2] / forward[4]:.0f} times, central error: {central[2] / central[4]:.0f} times"
)
assert 8 < forward[2] / forward[4] < 12 and 80 < central[2] / central[4] < 120


# %%
# A step ten times larger gives an error ten and a hundred times larger, as the formulas say. In the picture
# each line has the shape of a V. From the right, the error falls with the step: the curve is straighter seen
# close up. Then it rises again: f(x + h) and f(x - h) agree in more and more digits, and what is left of
# their difference is *rounding*.

fig, ax = plt.subplots(figsize=(7, 4))
lines = {
    ("central", "float64"): ("#0072b2", "-"),
    ("forward", "float64"): ("#0072b2", "--"),
    ("central", "float32"): ("#d55e00", "-"),
}
best = {}
for (name, bits), (color, style) in lines.items():
    found = errors({"central": central_difference, "forward": forward_difference}[name], np.dtype(bits).type)
    best[name, bits] = found.min()
    ax.loglog(steps, np.maximum(found, 1e-17), style, color=color, label=f"{name} difference, {bits}")
    print(f"{name} difference, {bits}: at best {found.min():.0e}, with h = {steps[found.argmin()]:.0e}")
ax.set(xlabel="step h", ylabel="relative error of the slope", ylim=(1e-13, 10))
ax.legend(loc="lower left")

near_1e_6 = errors(central_difference, np.float64)[abs(steps - 1e-6) < 1e-7].item()
assert best["central", "float64"] < 1e-8 and near_1e_6 < 1e-8
assert best["central", "float32"] > 1000 * best["central", "float64"]

# %%
# In float32 even the best step leaves an error more than a thousand times larger, and a gradient that is a
# little wrong hides in that noise. Hence the first two rules: **central differences, and float64**. A step
# near 1e-6 is a good choice.

# %%
# Many outputs, one number
# ------------------------
#
# An operation has many outputs. To get one number whose slope can be measured, weigh them: multiply the
# result ``y`` with an array ``dy`` and sum. The gradient of that number is just what ``y.backward(dy)``
# computes, so the two must agree::
#
#     dx[i]  =  sum(dy * (f(x + h at i) - f(x - h at i))) / (2 h)


def measured_gradient(f, x, dy, h=1e-6):
    """The gradient of sum(dy * f(x)) by central differences, one element of x at a time."""
    dx = np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[i] = h
        dx[i] = (dy * (f(Tensor(x + step)).data - f(Tensor(x - step)).data)).sum() / (2 * h)
    return dx


def tape_gradient(f, x, dy):
    """The gradient of sum(dy * f(x)) as the tape finds it."""
    leaf = Tensor(x, requires_grad=True)
    f(leaf).backward(dy)
    return leaf.grad


# %%
# Try it on the ReLU. All elements agree to many digits.

rng = np.random.default_rng(0)
x = rng.normal(size=(4, 5))
dy = rng.normal(size=(4, 5))
difference = abs(measured_gradient(relu, x, dy) - tape_gradient(relu, x, dy)).max()
print("largest difference:", difference)
assert difference < 1e-8

# %%
# The trap of all ones
# --------------------
#
# Which ``dy`` should you take? Many checks take the sum of the outputs, that is, a ``dy`` of all ones. It
# looks harmless. Now look at batch norm, which brings each column (each channel) of x to mean 0 and variance
# 1. Here is a batch norm whose backward is a fraud: it returns zeros, whatever comes in.

gamma, beta = Tensor(np.array([1.0, 2.0, 0.5])), Tensor(np.array([0.0, 1.0, -1.0]))


def honest(x):
    return batch_norm(x, gamma, beta, training=True)


def fraud(x):
    """Batch norm with a backward that returns zeros."""
    y = honest(Tensor(x.data)).data
    return record("fraud", y, inputs={"x": x}, backward=lambda dy: (np.zeros_like(x.data),))


# %%
# Check the fraud with a ``dy`` of all ones.

x = rng.normal(size=(8, 3))
ones = np.ones((8, 3))
print(
    "fraud,  dy of ones: off by", abs(measured_gradient(fraud, x, ones) - tape_gradient(fraud, x, ones)).max()
)
assert np.allclose(measured_gradient(fraud, x, ones), tape_gradient(fraud, x, ones), atol=1e-7)

# %%
# It passes. And the reason is not rounding: with a ``dy`` of ones, zero is the *true* gradient. The sum of a
# column after batch norm is always 8 * beta, since its mean is beta; no change of x can move it. So the check
# asks a question whose answer is zero, and the fraud knows that answer.
#
# Ask with a random ``dy`` and it is caught at once.

random = rng.normal(size=(8, 3))
print(
    "fraud,  random dy: off by",
    abs(measured_gradient(fraud, x, random) - tape_gradient(fraud, x, random)).max(),
)
print(
    "honest, random dy: off by",
    abs(measured_gradient(honest, x, random) - tape_gradient(honest, x, random)).max(),
)
assert not np.allclose(measured_gradient(fraud, x, random), tape_gradient(fraud, x, random), atol=1e-2)
assert np.allclose(measured_gradient(honest, x, random), tape_gradient(honest, x, random), atol=1e-7)

# %%
# In the picture each dot is an element of x: across, what was measured; up, what the tape says. A right
# backward lies on the diagonal. On the left, with ones, both backwards sit on one spot, and no check can tell
# them apart.

fig, axes = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True, layout="constrained")
for ax, upstream, title in zip(axes, (ones, random), ("dy of all ones", "random dy"), strict=True):
    true = measured_gradient(honest, x, upstream)
    ax.axline((0, 0), slope=1, color="#999999", linewidth=1)
    ax.scatter(true, tape_gradient(honest, x, upstream), color="#0072b2", label="honest batch norm")
    ax.scatter(true, tape_gradient(fraud, x, upstream), color="#d55e00", marker="x", label="fraud: zeros")
    ax.set(title=title, xlabel="measured gradient")
axes[0].set(ylabel="gradient of the tape")
axes[1].legend(loc="upper left")

# %%
# Batch norm is not alone. A *softmax* makes probabilities of any numbers, the larger the more probable::
#
#     y[k] = exp(x[k]) / (exp(x[0]) + exp(x[1]) + ...)
#
# Of 2, 1 and 0 the exponentials are 7.389, 2.718 and 1, together 11.107; each over their sum gives 0.665,
# 0.245 and 0.090. They sum to 1 whatever x is, so a ``dy`` of ones, which asks for the slope of the sum, asks
# nothing of it. The third rule: **a random upstream gradient**.

y = softmax(Tensor([[2.0, 1.0, 0.0]])).numpy()
assert np.allclose(y, [[0.665, 0.245, 0.090]], atol=5e-4) and np.isclose(y.sum(), 1)

true = measured_gradient(softmax, x, ones)
print("softmax, dy of ones: the largest true gradient is", abs(true).max())
assert abs(true).max() < 1e-8

# %%
# The check that minires uses
# ---------------------------
#
# ``minires.gradcheck`` keeps these rules, and a few more. It changes each input to float64, draws a random
# ``dy``, measures every element and compares. The report names the worst element.

print(gradcheck(honest, {"x": x}))
try:
    gradcheck(fraud, {"x": x})
    report = None
except GradcheckError as error:
    report = error.report
print(report)
assert report is not None and report.inputs[0].failed == x.size

# %%
# The other ways to be fooled
# ---------------------------
#
# **A tolerance larger than the gradient.** Let the true gradients be about 1e-6, as they are deep in a
# network. Then "equal within 1e-5" is true for zeros. An error has to be measured against the gradients
# themselves: it must be *relative*.

tiny = 1e-6 * tape_gradient(honest, x, random)
zeros = np.zeros_like(tiny)
print("allclose with atol=1e-5 says:", np.allclose(zeros, tiny, atol=1e-5))
print("relative error:", abs(zeros - tiny).max() / abs(tiny).max())
assert np.allclose(zeros, tiny, atol=1e-5) and abs(zeros - tiny).max() / abs(tiny).max() == 1

# %%
# **A kink.** At exactly 0 the ReLU has no slope: 0 on the left, 1 on the right. The central difference gives
# the middle, half of ``dy``, and a right backward looks wrong. ``gradcheck`` compares both sides and says so,
# instead of blaming the backward.

at_the_kink = gradcheck(relu, {"x": np.array([-1.0, 0.0, 1.0])}, raise_on_fail=False)
print(at_the_kink)
assert at_the_kink.worst.index == (1,) and at_the_kink.worst.kink
assert abs(at_the_kink.worst.numeric - at_the_kink.worst.analytic) > 0.2

# %%
# **An input without influence.** If the output does not depend on x at all, zero is right, and again a fraud
# would pass. The report says that nothing was learned.

blind = gradcheck(lambda x: x - x, {"x": x})
print(blind)
assert blind.inputs[0].blind

# %%
# **A large number beside a small step.** Near 1e16 the floats are 2 apart, so a step of a millionth is lost.
# ``gradcheck`` tries larger steps; what they do not show either it calls undecided, and it has not passed.

hidden = gradcheck(lambda x: x + np.array([0.0, 1e16]), {"x": np.ones(2)}, raise_on_fail=False)
print(hidden)
assert not hidden.ok and hidden.inputs[0].undecided == 1

# %%
# **A function that changes its mind.** A dropout draws other numbers in each call, and a function may
# overwrite its input. Then the two values whose difference you take belong to different functions.
# ``gradcheck`` runs the function again and compares.

moods = np.random.default_rng(1)
moody = gradcheck(lambda x: x * moods.normal(), {"x": x}, raise_on_fail=False)
print(str(moody).splitlines()[1])
assert moody.problems

# %%
# Exercises
# ---------
#
# Put your answer in the place of ``...`` and run the cell again.

# %%
# **Exercise 1.** Three wrong backwards for ``y = x - mean(x)``, the first step of batch norm. Which of them
# does a check with a ``dy`` of all ones let pass? Answer with the set of their names, such as ``{"a"}``.
# Think before you measure: what is the true gradient for ones?


def wrong(backward):
    def centre(x):
        y = x.data - x.data.mean()
        return record("centre", y, inputs={"x": x}, backward=lambda dy: (backward(dy),))

    return centre


backwards = {
    "a": lambda dy: dy,  # forgets that the mean moves too
    "b": lambda dy: 0 * dy,  # returns nothing
    "c": lambda dy: dy.mean() - dy,  # has the wrong sign
}

your_set = ...


def passes(backward):
    x = np.array([0.3, -1.2, 2.0])
    return np.allclose(gradient_for_ones(wrong(backward), x), gradient_for_ones(lambda x: x - x.mean(), x))


def gradient_for_ones(f, x):
    leaf = Tensor(x, requires_grad=True)
    f(leaf).backward(np.ones_like(x))
    return leaf.grad


check(
    "these pass, and no others",
    lambda: set(your_set) == {name for name, backward in backwards.items() if passes(backward)},
)

# %%
# **Exercise 2.** The *leaky* ReLU is ``x`` where x > 0 and ``0.1 * x`` elsewhere. Write its backward.


def your_leaky_backward(dy, x):
    """The gradient of x."""
    ...


def leaky_relu(x):
    a = x.data
    y = np.where(a > 0, a, 0.1 * a)
    return record("leaky", y, inputs={"x": x}, backward=lambda dy: (your_leaky_backward(dy, a),))


numbers = np.random.default_rng(2).normal(size=(3, 4))
check("gradcheck passes", lambda: gradcheck(leaky_relu, {"x": numbers}, raise_on_fail=False).ok)


def left_alone():
    dy = np.ones((3, 4))
    your_leaky_backward(dy, numbers)
    return bool((dy == 1).all())


check("dy is left as it was", left_alone)

# %%
# **Exercise 3.** Write the error by which a check judges: 0 for equal numbers, about 1 if one of them is zero
# or the sign is wrong, and the same for numbers that are a million times smaller. Both zero is no error.


def your_error(analytic, numeric):
    """How far two numbers are apart, as a share of the larger one."""
    ...


check("equal numbers have error 0", lambda: your_error(3.0, 3.0) == 0 and your_error(0.0, 0.0) == 0)
check("zero for a tiny gradient is seen", lambda: your_error(0.0, 1e-9) >= 0.5)
check("a wrong sign is seen", lambda: your_error(-2e-9, 2e-9) >= 0.5)
check("the size of both does not matter", lambda: np.isclose(your_error(3e-6, 4e-6), your_error(3.0, 4.0)))
check("nor does their order", lambda: np.isclose(your_error(5.0, 4.0), your_error(4.0, 5.0)))

# %%
# What you now know
# -----------------
#
# * A gradient is measured with central differences, in float64, with a step near 1e-6.
# * A ``dy`` of all ones asks nothing of batch norm and softmax: zeros pass. The upstream gradient must be
#   random.
# * An error is relative, or small gradients are never checked.
# * Kinks, inputs without influence and functions that change must be told apart from wrong backwards.
# * ``minires.gradcheck`` does this; ``minires gradcheck`` on the command line does it for every operation.
