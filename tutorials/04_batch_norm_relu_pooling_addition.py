"""
04 · Batch norm, ReLU, pooling, addition
========================================

You do the other operations of a residual network by hand, forward and backward, and compare with minires.

Beside the convolution of lesson 03 there are only four kinds: an activation, an addition, pooling, and batch
norm. At the end all of them pass the gradient check of lesson 02, and you can write the backward of a small
residual block. The code is in ``minires/ops/``: ``relu.py``, ``arithmetic.py``, and the folders
``max_pool2d``, ``avg_pool2d`` and ``batch_norm``. Each file begins with its formula; of a folder it is
``__init__.py`` that does.
"""

# %%
# The operations have a file each, and are imported from there.

import matplotlib.pyplot as plt
import numpy as np

from minires import Tensor, gradcheck, unfused
from minires.data import find, load
from minires.data.hands import render
from minires.exercises import check
from minires.ops.avg_pool2d import avg_pool2d
from minires.ops.batch_norm import batch_norm
from minires.ops.conv2d import conv2d
from minires.ops.max_pool2d import max_pool2d
from minires.ops.relu import relu

# %%
# ReLU: a gate for each number
# ----------------------------
#
# ::
#
#     y = max(x, 0)
#     dx = dy where y > 0, else 0
#
# Each number decides for itself. Where the gate was open in the forward pass, the gradient goes through
# unchanged; where it was closed, the gradient is zero. To know which, ``y`` is enough: the backward does
# not need ``x``.

x = np.array([-2.0, -0.5, 0.0, 0.5, 3.0])
dy = np.array([10.0, 20.0, 30.0, 40.0, 50.0])
y = np.maximum(x, 0)
dx = dy * (y > 0)
print("x ", x, "\ny ", y, "\ndx", dx)

x_tensor = Tensor(x, requires_grad=True)
y_tensor = relu(x_tensor)
y_tensor.backward(dy)
assert np.array_equal(y_tensor.numpy(), y) and np.array_equal(x_tensor.grad, dx)

# %%
# At exactly zero the slope from the left is 0 and from the right 1, so there is no derivative. By
# convention the gradient there is 0. The gradient check finds such a place and calls it a kink. Checks of
# ReLU therefore take numbers away from zero.

report = gradcheck(relu, {"x": np.array([-1.0, 0.0, 1.0])}, raise_on_fail=False)
print(report)
assert not report.ok and report.worst.kink and report.worst.index == (1,)

# %%
# Addition: the gradient forks
# ----------------------------
#
# ::
#
#     y = a + b
#     da = dy,  db = dy
#
# Addition hands the whole gradient to both sides. It divides nothing: each side gets all of ``dy``. The
# reverse also holds. Where the forward pass uses one tensor twice, a fork, its two gradients add up. A
# residual block has both, an addition at its end and a fork at its start::
#
#     y  = x + f(x)
#     dx = dy + f'(x) * dy
#
# Here with f(x) = 3 x, so each dy must come back four times.

x_tensor = Tensor(np.array([1.0, 2.0]), requires_grad=True)
y_tensor = x_tensor + 3.0 * x_tensor
for step in y_tensor.backward_steps(np.array([1.0, 10.0])):
    print(step.node.op, " dy", step.incoming, " ->", [g for g in step.outgoing if g is not None])
print("dx", x_tensor.grad)
assert np.array_equal(x_tensor.grad, [4.0, 40.0])

# %%
# The first term of ``dx`` is ``dy`` itself, whatever f does. So the gradient reaches ``x`` even where f
# lets nothing through. The next picture shows it with f(x) = relu(x - 1): without the addition the gradient
# is zero on the left, with it the gradient is never below 1. Lesson 05 shows what this does in a deep
# network.

places = np.linspace(-2, 3, 101)
places = places[abs(places - 1) > 1e-9]  # not on the kink
gradients = {}
for name in ("f(x)", "x + f(x)"):
    x_tensor = Tensor(places, requires_grad=True)
    f = relu(x_tensor - 1.0)
    (f if name == "f(x)" else x_tensor + f).backward(np.ones_like(places))
    gradients[name] = x_tensor.grad
fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
for (name, dx), style in zip(gradients.items(), ("--", "-"), strict=True):
    ax.plot(places, dx, style, linewidth=2, label=f"y = {name}")
ax.set(xlabel="x", ylabel="dx for dy = 1", title="f(x) = relu(x - 1), alone and with the addition")
ax.legend()
assert gradients["f(x)"].min() == 0 and gradients["x + f(x)"].min() == 1

# %%
# Max pooling: the winner gets it all
# -----------------------------------
#
# The output is the largest number under each window. Only that number had an influence, so it alone gets
# the gradient; of equal numbers the first one in reading order. The rest get zero. ResNet uses a 3x3 window
# with stride 2. Its windows overlap, so one number may win in several windows, and then its gradients add
# up.

x = np.array([
    [1, 3, 2, 0, 1],
    [2, 1, 0, 4, 2],
    [0, 2, 9, 1, 0],
    [3, 1, 2, 5, 1],
    [1, 0, 1, 2, 6],
], float).reshape(1, 5, 5, 1)  # fmt: skip
x_tensor = Tensor(x, requires_grad=True)
y_tensor = max_pool2d(x_tensor, 3, stride=2)
dy = np.array([[1.0, 2.0], [4.0, 8.0]]).reshape(1, 2, 2, 1)
y_tensor.backward(dy)
print("y\n", y_tensor.numpy()[0, :, :, 0], "\ndx\n", x_tensor.grad[0, :, :, 0])

# %%
# In this example the 9 in the middle lies under all four windows and wins in each. The next picture shows
# the routing: all of ``dy`` arrives at one pixel, as the sum 1 + 2 + 4 + 8 = 15. The other picture in the
# same row has smaller windows, 2x2 with stride 2, which do not overlap: four winners, one gradient each.

assert x_tensor.grad[0, 2, 2, 0] == 15 and np.count_nonzero(x_tensor.grad) == 1
even = x[:, :4, :4]
even_tensor = Tensor(even, requires_grad=True)
max_pool2d(even_tensor, 2).backward(dy)
assert np.count_nonzero(even_tensor.grad) == 4 and even_tensor.grad.sum() == dy.sum()

fig, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
shown_pairs = zip(axes, (x, even), (x_tensor.grad, even_tensor.grad), ("3x3", "2x2"), strict=True)
for ax, values, gradient, size in shown_pairs:
    shown = ax.imshow(gradient[0, :, :, 0], cmap="Blues", vmin=0, vmax=25)
    for (_, i, j, _), value in np.ndenumerate(values):
        got = gradient[0, i, j, 0]
        ax.text(j, i, f"{value:g}" + (f"\ndx {got:g}" if got else ""), ha="center", va="center")
    ax.set(title=f"window {size}, stride 2: x, and dx", xlabel="column of x", ylabel="row of x")
    ax.set(xticks=range(values.shape[2]), yticks=range(values.shape[1]))
fig.colorbar(shown, ax=axes, label="dx")

# %%
# A border for max pooling is filled with minus infinity. With zeros the border would beat negative pixels.
# Here all pixels are negative, and the result must be one of them.

negative = Tensor(np.full((1, 3, 3, 1), -1.0))
pooled = max_pool2d(negative, 3, stride=2, padding=1).numpy()
assert (pooled == -1).all()
print("the largest of pixels that are all -1:", pooled.ravel())

# %%
# Average pooling: shared equally
# -------------------------------
#
# The mean of M numbers gives each of them the gradient ``dy / M``. At the end of a ResNet an average over
# the whole picture turns the last feature maps into one number per channel.

x_tensor = Tensor(np.array([1.0, 2.0, 3.0, 6.0]).reshape(1, 2, 2, 1), requires_grad=True)
y_tensor = avg_pool2d(x_tensor, 2)
y_tensor.backward(np.full((1, 1, 1, 1), 8.0))
print("y", y_tensor.numpy().ravel(), " dx", x_tensor.grad.ravel())
assert y_tensor.numpy().item() == 3 and (x_tensor.grad == 2).all()

# %%
# Batch norm: forward
# -------------------
#
# Batch norm looks at one channel at a time. It takes all M values of that channel, over all pictures, rows
# and columns of the batch, and brings them to mean 0 and variance 1. Then two learned numbers, gamma and
# beta, set the scale and the mean that the network wants (Ioffe and Szegedy 2015)::
#
#     mean = sum(x) / M      var = sum((x - mean)^2) / M      inv = 1 / sqrt(var + eps)
#     xhat = (x - mean) * inv
#     y = gamma * xhat + beta
#
# ``eps`` is a small number that keeps the root away from zero. By hand, for one channel with four values:

x = np.array([[1.0], [3.0], [5.0], [7.0]])  # (M, C) with C = 1
gamma, beta, eps = np.array([2.0]), np.array([10.0]), 1e-3
mean, var = x.mean(axis=0), ((x - x.mean(axis=0)) ** 2).mean(axis=0)
inv = 1 / np.sqrt(var + eps)
xhat = (x - mean) * inv
y = gamma * xhat + beta
print("mean", mean, " var", var, "\nxhat", xhat[:, 0], "\ny   ", y[:, 0])
assert mean == 4 and var == 5
assert np.allclose(y, batch_norm(Tensor(x), Tensor(gamma), Tensor(beta), training=True, eps=eps).numpy())

# %%
# Now with pictures. Six of them go through a 3x3 convolution with random weights to three channels. The
# picture below shows how the values of each channel are distributed, before and after batch norm. Before,
# each channel has a mean and a width of its own, and the next layer has to live with what it gets. After,
# all have mean 0 and standard deviation 1, printed below. Its authors say that a network with it can learn at
# a much higher rate, and tried 5 and 30 times the usual one. Lab P12, ``minires lab batch-norm``, tries ten.

if find("signs"):
    pictures = load("signs").test.images[::20]
else:
    pictures = np.stack([render(sign, seed=sign) for sign in range(6)])
rng = np.random.default_rng(1)
w = 0.4 * rng.standard_normal((3, 3, 3, 3)) + np.array([0.1, 0.0, -0.2])  # (KH, KW, C, O)
before = conv2d(Tensor(pictures / 255), Tensor(w), Tensor(np.array([2.0, 0.0, 0.0])))
after = batch_norm(before, Tensor(np.ones(3)), Tensor(np.zeros(3)), training=True, eps=1e-5)

fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharex=True, sharey=True)
for ax, values, when in zip(axes, (before.numpy(), after.numpy()), ("before", "after"), strict=True):
    for channel, style in enumerate(("-", "--", ":")):
        counts, edges = np.histogram(values[..., channel], bins=60)
        ax.plot(edges[:-1], counts / counts.max(), style, linewidth=2, label=f"channel {channel}")
    ax.set(title=f"{when} batch norm", xlabel="value", ylabel="number of values / largest")
axes[1].legend()
print("before: mean", before.numpy().mean((0, 1, 2)).round(2), " std", before.numpy().std((0, 1, 2)).round(2))
print("after:  mean", after.numpy().mean((0, 1, 2)).round(2), " std", after.numpy().std((0, 1, 2)).round(2))
assert abs(after.numpy().mean((0, 1, 2))).max() < 1e-6
assert abs(after.numpy().std((0, 1, 2)) - 1).max() < 0.02

# %%
# In inference a single picture must not depend on its neighbours in a batch. So during training a running
# mean and a running variance are kept for each channel, and inference uses them as constants. Below, each
# of 200 steps moves the running numbers a tenth of the way towards those of the batch (momentum 0.9, as
# Keras counts it).

running_mean, running_var = np.zeros(3), np.ones(3)
parts = Tensor(np.ones(3)), Tensor(np.zeros(3))
running = {"running_mean": running_mean, "running_var": running_var}
few = Tensor(before.numpy()[:, ::8, ::8])
for _ in range(200):
    in_training = batch_norm(few, *parts, training=True, momentum=0.9, **running)
in_inference = batch_norm(few, *parts, training=False, **running)
print("running mean", running_mean.round(2), " mean of the batch", few.numpy().mean((0, 1, 2)).round(2))
assert np.allclose(in_inference.numpy(), in_training.numpy())
alone = batch_norm(Tensor(few.numpy()[:1]), *parts, training=False, **running).numpy()
assert np.allclose(alone[0], in_inference.numpy()[0])

# %%
# Batch norm: backward
# --------------------
#
# One value of ``x`` acts on ``y`` in three ways: directly, through the mean, and through the variance. The
# sum of the three is::
#
#     dbeta  = sum(dy)         dgamma = sum(dy * xhat)
#     dx     = gamma * inv * (dy - dbeta / M - xhat * dgamma / M)
#
# The direct way is ``gamma * inv * dy``. The second term takes away the mean of ``dy``, the third one what
# of ``dy`` points along ``xhat``. The reason is simple: shifting all values of a channel, or stretching
# them, does not change ``xhat``, so the gradient cannot ask for it.

dy = np.array([[1.0], [0.0], [0.0], [2.0]])
dbeta, dgamma = dy.sum(axis=0), (dy * xhat).sum(axis=0)
dx = gamma * inv * (dy - dbeta / len(x) - xhat * dgamma / len(x))

tensors = [Tensor(array, requires_grad=True) for array in (x, gamma, beta)]
batch_norm(*tensors, training=True, eps=eps).backward(dy)
for tensor, by_hand in zip(tensors, (dx, dgamma, dbeta), strict=True):
    assert np.allclose(tensor.grad, by_hand)
print("dx", dx[:, 0], "\nsum of dx", dx.sum(), "\nsum of dx * xhat", (dx * xhat).sum())
assert abs(dx.sum()) < 1e-12 and abs((dx * xhat).sum()) < 1e-3

# %%
# Now you see why lesson 02 warned of an upstream gradient of ones: it asks for nothing but a shift, and the
# right answer is zero. So a batch norm whose backward returns zeros would pass.

tensors[0].grad = None
batch_norm(*tensors, training=True, eps=eps).backward(np.ones_like(dy))
print("dx for dy = 1:", tensors[0].grad[:, 0])
assert abs(tensors[0].grad).max() < 1e-12

# %%
# All of them, checked
# --------------------
#
# The gradient check with a random upstream gradient, for every operation of this lesson.

values = rng.permutation(np.arange(72.0)).reshape(2, 6, 6, 1) / 10 - 3.55  # all different, none near zero
operations = {
    "relu": relu,
    "addition": lambda x: x + relu(x),
    "max pooling": lambda x: max_pool2d(x, 3, stride=2),
    "average pooling": lambda x: avg_pool2d(x, 2),
    "batch norm": lambda x: batch_norm(x, Tensor(gamma), Tensor(beta), training=True),
}
for name, operation in operations.items():
    report = gradcheck(operation, {"x": values})
    print(f"{name:16} worst relative error {report.worst.error:.0e}")
    assert report.ok

# %%
# The last step of a residual block
# ---------------------------------
#
# A residual block ends with batch norm, addition and ReLU. minires does the three in one pass over memory,
# as ``batch_norm(..., add=shortcut, relu=True)``. Inside ``unfused()`` they run as three nodes of the tape,
# which is slower and easier to look at. The numbers are the same.

x_tensor = Tensor(before.numpy(), requires_grad=True)
shortcut = Tensor(rng.standard_normal(before.shape), requires_grad=True)
options = {"training": True, "add": shortcut, "relu": True}
fused = batch_norm(x_tensor, *parts, **options)
with unfused():
    separate = batch_norm(x_tensor, *parts, **options)
assert np.allclose(fused.numpy(), separate.numpy())
for result in (fused, separate):
    print("backward:", [step.node.op for step in result.backward_steps(np.ones(result.shape))])

# %%
# Exercises
# ---------
#
# Replace each ``...`` and run the lesson again.

# %%
# **Exercise 1.** Average pooling with windows of 2x2 that do not overlap: from ``dy`` (N, OH, OW, C) return
# ``dx`` (N, 2*OH, 2*OW, C).


def your_avg_pool_backward(dy):
    """Return dx."""
    ...


def pooled_gradient(dy):
    """dx of minires."""
    n, oh, ow, c = dy.shape
    x = Tensor(np.zeros((n, 2 * oh, 2 * ow, c)), requires_grad=True)
    avg_pool2d(x, 2).backward(dy)
    return x.grad


DY = np.random.default_rng(0).standard_normal((2, 3, 2, 4))
check("dx has the shape of x", lambda: your_avg_pool_backward(DY).shape == (2, 6, 4, 4))
check("the sum of dx is the sum of dy", lambda: np.isclose(your_avg_pool_backward(DY).sum(), DY.sum()))
check("dx", lambda: np.allclose(your_avg_pool_backward(DY), pooled_gradient(DY)))

# %%
# **Exercise 2.** Write ``dx`` of batch norm in training from ``dy`` (M, C), ``xhat`` (M, C), ``gamma`` (C,)
# and ``inv`` (C,), for any number of channels.


def your_batch_norm_backward(dy, xhat, gamma, inv):
    """Return dx."""
    ...


def both_batch_norms(dy):
    """Your dx and that of minires."""
    x = np.random.default_rng(0).normal(1, 3, dy.shape)
    gamma = np.arange(1.0, dy.shape[1] + 1)
    inv = 1 / np.sqrt(x.var(axis=0) + 1e-3)
    xhat = (x - x.mean(axis=0)) * inv
    x_tensor = Tensor(x, requires_grad=True)
    batch_norm(x_tensor, Tensor(gamma), Tensor(0 * gamma), training=True, eps=1e-3).backward(dy)
    return your_batch_norm_backward(dy, xhat, gamma, inv), x_tensor.grad


DY, ONES = np.random.default_rng(1).uniform(0, 2, (8, 3)), np.ones((8, 2))
check("one channel", lambda: np.allclose(*both_batch_norms(DY[:, :1])))
check("several channels", lambda: np.allclose(*both_batch_norms(DY)))
check("an upstream gradient of ones gives zero", lambda: np.allclose(both_batch_norms(ONES)[0], 0))

# %%
# **Exercise 3.** A small residual block: ``y = x + relu(x @ w)`` with ``x`` (M, C) and ``w`` (C, C). Return
# ``dx``. Lesson 03 has the backward of a product.


def your_residual_backward(dy, x, w):
    """Return dx."""
    ...


def both_residuals(scale):
    """Your dx and that of minires."""
    rng = np.random.default_rng(0)
    dy, x, w = rng.standard_normal((5, 4)), rng.standard_normal((5, 4)), scale * rng.standard_normal((4, 4))
    x_tensor = Tensor(x, requires_grad=True)
    (x_tensor + relu(x_tensor @ Tensor(w))).backward(dy)
    return your_residual_backward(dy, x, w), x_tensor.grad


check("w = 0: the gradient passes unchanged", lambda: np.allclose(*both_residuals(0.0)))
check("dx for any w", lambda: np.allclose(*both_residuals(1.0)))

# %%
# What you now know
# -----------------
#
# - ReLU is a gate: the gradient passes where ``y > 0``.
# - Addition gives the whole gradient to both sides, and at a fork gradients add up. So the addition of a
#   residual block hands ``dy`` on to the block's input, whatever the block computes.
# - Max pooling sends the gradient to the winner, average pooling shares it.
# - Batch norm brings each channel to mean 0 and variance 1, and takes shift and stretch out of the gradient.
# - In inference batch norm uses running statistics, so a picture does not depend on its batch.
