"""
01 · Tensor and tape
====================

You compute a number, read on the tape how it came about, and walk back to what would change it.

To train a network means to ask one question again and again: if this weight were a little larger, how much
larger would the loss be? That ratio is a *gradient*. A network has millions of weights, and the question is
answered for all of them in one walk backwards. This lesson shows the walk on expressions small enough to
follow with a pencil. Nothing more is needed later: a ResNet-50 is a longer tape.
"""

# %%
# You need NumPy for arrays, matplotlib for pictures, and two things of minires: the tensor, and the function
# by which an operation records itself.

import matplotlib.pyplot as plt
import numpy as np

from minires import MiniresError, Tensor, no_grad
from minires.exercises import check
from minires.tensor import record

# %%
# An array that remembers how it was made
# ---------------------------------------
#
# A ``Tensor`` is an array with a memory. Say which tensors you will want gradients of, then compute as with
# any numbers:

x = Tensor(3.0, requires_grad=True, name="x")
w = Tensor(-2.0, requires_grad=True, name="w")

product = x * w
y = product * product + x

print(y.item())
assert y.item() == (3 * -2) ** 2 + 3

# %%
# While you computed, each operation left an entry on the *tape*: a node that knows its operation and the
# nodes of its inputs, its *parents*. A tensor that you made yourself is a *leaf*.

print(y.node, "comes from", y.node.parents)
print(product.node, "comes from", product.node.parents)
assert [parent.op for parent in y.node.parents] == ["mul", "leaf"]

# %%
# Here is the whole tape as a picture. The arrows point the way the numbers went. Two things to see:
# ``product`` enters the upper multiplication twice, and ``x`` is used in two places.

places = {x.node: (0, 1), w.node: (0, 0), product.node: (1, 0.5)}
square = y.node.parents[0]
places |= {square: (2, 0.5), y.node: (3, 0.75)}
labels = {
    x.node: "x = 3",
    w.node: "w = -2",
    product.node: "mul\nproduct = -6",
    square: "mul\n36",
    y.node: "add\ny = 39",
}


def draw_tape(ax, notes, color):
    """Draw every node at its place with its note, and an arrow for each use."""
    for node, (across, up) in places.items():
        for use, parent in enumerate(node.parents):
            bend = 0.25 * (2 * use - 1) * (node.parents[0] is node.parents[1])
            style = {"arrowstyle": "->", "connectionstyle": f"arc3,rad={bend}", "shrinkA": 34, "shrinkB": 34}
            ax.annotate("", (across, up), places[parent], arrowprops=style)
        box = {"boxstyle": "round", "facecolor": color, "edgecolor": "black"}
        ax.text(across, up, notes[node], ha="center", va="center", bbox=box)
    ax.set(xlim=(-0.5, 3.5), ylim=(-0.4, 1.4))
    ax.axis("off")


fig, ax = plt.subplots(figsize=(8, 3))
draw_tape(ax, labels, "#cfe8f7")
ax.set_title("The tape of y = (x w)(x w) + x, left to right")

# %%
# The walk back
# -------------
#
# Now turn around. Start at ``y`` with the gradient 1: if y grows by a little, y grows by just that. Each
# operation knows how to pass on a gradient ``dy`` of its result to its inputs::
#
#     y = a + b        da = dy           db = dy
#     y = a * b        da = dy * b       db = dy * a
#
# This is the chain rule of calculus, one link at a time. ``backward_steps`` takes the steps one by one, so
# you can watch: the gradient that comes in, and what goes out to each parent.

gradients = {y.node: np.ones(())}
for step in y.backward_steps(retain_graph=True):
    out = [float(gradient) for gradient in step.outgoing]
    print(f"{step.node.op:3}  comes in: {float(step.incoming):6.1f}   goes out: {out}")
    gradients[step.node] = step.incoming

# %%
# Check it with a pencil. The last operation is the addition: it passes 1 to both sides. The upper
# multiplication gets 1 and passes on 1 * (-6) twice, once for each factor. So -12 arrives at ``product``. And
# ``product = x * w`` passes on -12 * w = 24 to x, and -12 * x = -36 to w.

print("gradient of x:", x.grad, "  gradient of w:", w.grad)
assert gradients[product.node] == -6 + -6
assert w.grad == -36

# %%
# Where two ways meet, gradients are added
# ----------------------------------------
#
# ``x`` was used twice: in the product, which sends back 24, and in the addition, which sends back 1. Its
# gradient is the sum, 25. That rule deserves a second look: *what is used in several places gets the sum of
# what comes back from them.* You will meet it again at the shortcut
# of a residual block, in lesson 06.

gradients |= {x.node: x.grad, w.node: w.grad}
notes = {node: f"{labels[node].splitlines()[-1]}\ngradient {float(gradients[node]):g}" for node in places}
fig, ax = plt.subplots(figsize=(8, 3))
draw_tape(ax, notes, "#fde3c4")
ax.set_title("The gradients of the same tape: they were found from right to left")

assert x.grad == 24 + 1

# %%
# Is it true? Move ``x`` a little and look at what y does. Lesson 02 is about how to do this well.


def y_of(x, w):
    return (x * w) * (x * w) + x


h = 1e-4
slope = (y_of(3 + h, -2) - y_of(3 - h, -2)) / (2 * h)
print("measured:", slope, "  from the tape:", float(x.grad))
assert abs(slope - x.grad) < 1e-6

# %%
# An operation of your own
# ------------------------
#
# Every operation of minires has two halves: compute an array, then call ``record`` with the name, the result,
# the inputs by their names, and a function ``backward(dy)`` that returns one gradient per input. Nothing else
# makes an operation.


def sine(x):
    """The sine of every element. Math: y = sin(x), dx = dy * cos(x)."""

    angle = x.data  # taken once: by the time of the backward x may hold another array

    def backward(dy):
        return (dy * np.cos(angle),)

    return record("sine", np.sin(angle), inputs={"x": x}, backward=backward)


angles = Tensor(np.linspace(-np.pi, np.pi, 100), requires_grad=True)
wave = sine(angles)
wave.sum().backward()
assert np.allclose(angles.grad, np.cos(angles.data))

# %%
# The picture shows the operation and the gradient that came back: it is zero where the wave turns, and
# largest where the wave is steepest.

fig, ax = plt.subplots(figsize=(7, 3))
ax.plot(angles.data, wave.data, color="#0072b2", label="y = sin(x)")
ax.plot(angles.data, angles.grad, color="#d55e00", linestyle="--", label="gradient of sum(y) for x")
ax.set(xlabel="x (radians)", ylabel="value")
ax.legend()

# %%
# Three habits of the tape
# ------------------------
#
# First: a gradient is *added* to ``.grad``. Two backward passes without clearing it give the sum of both,
# which is a common mistake in training loops. Clear it before each step.

a = Tensor(5.0, requires_grad=True)
(a * a).backward()
(a * a).backward()
print("after two passes:", a.grad)
assert a.grad == 2 * (2 * 5)

# %%
# Second: the tape is freed while it is walked, because it holds on to arrays that need memory. Walking it
# again needs a new forward pass, or ``retain_graph=True`` as above.

once = a * a
once.backward()
try:
    once.backward()
    message = ""
except MiniresError as error:
    message = str(error)
print(message)
assert "freed" in message

# %%
# Third: under ``no_grad`` nothing is recorded. That is how to evaluate a model, and how to change its
# weights.

with no_grad():
    unrecorded = a * a
assert unrecorded.node is None

# %%
# What it is good for
# -------------------
#
# With gradients you can make a number smaller: go a small step against the gradient, again and again. Here
# are 40 points near a line, and two weights that start at zero. The loss is the mean of the squared
# distances.

rng = np.random.default_rng(0)
across = rng.uniform(-1, 1, 40)
up = 1.5 * across - 0.5 + rng.normal(0, 0.1, 40)

slope, offset = Tensor(np.zeros(()), requires_grad=True), Tensor(np.zeros(()), requires_grad=True)
losses = []
for _ in range(60):
    error = across * slope + offset - up
    loss = (error * error).mean()
    slope.grad = offset.grad = None
    loss.backward()
    with no_grad():
        slope.data -= 0.3 * slope.grad
        offset.data -= 0.3 * offset.grad
    losses.append(loss.item())

print(f"the line found: {slope.item():.2f} x + {offset.item():.2f}")
assert abs(slope.item() - 1.5) < 0.1 and abs(offset.item() + 0.5) < 0.1
assert losses[-1] < losses[0] / 20

# %%
# On the left the loss falls until only the scatter of the points is left; on the right is the line that was
# found. You have trained a model. A network has more weights and a longer tape, but its training loop is this
# one.

fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.semilogy(losses, color="#0072b2")
left.set(xlabel="step", ylabel="loss (mean squared distance)")
right.scatter(across, up, s=12, color="#555555", label="points")
ends = np.array([-1, 1])
right.plot(ends, slope.item() * ends + offset.item(), color="#d55e00", label="line found")
right.set(xlabel="x", ylabel="y")
right.legend()

# %%
# Exercises
# ---------
#
# Put your answer in the place of ``...`` and run the cell again. It says of each claim whether it is right.

# %%
# **Exercise 1.** ``cube`` computes ``y = x * x * x`` in one operation. Write its backward: given ``dy``, the
# gradient of y, and the array ``x``, return the gradient of x.


def your_cube_backward(dy, x):
    """The gradient of x."""
    ...


def cube(x):
    a = x.data
    return record("cube", a**3, inputs={"x": x}, backward=lambda dy: (your_cube_backward(dy, a),))


def gradient_of(function, x, dy):
    leaf = Tensor(x, requires_grad=True)
    function(leaf).backward(dy)
    return leaf.grad


numbers = np.array([-2.0, -0.5, 0.0, 1.0, 3.0])
dy = np.array([1.0, -1.0, 2.0, 0.5, 10.0])
check(
    "the gradient is that of the tape of x * x * x",
    lambda: np.allclose(gradient_of(cube, numbers, dy), gradient_of(lambda x: x * x * x, numbers, dy)),
)
check(
    "twice the dy gives twice the dx",
    lambda: np.allclose(your_cube_backward(2 * dy, numbers), 2 * your_cube_backward(dy, numbers)),
)

# %%
# **Exercise 2.** Without running it: how many gradients are added up in ``x.grad`` after ``z.backward()``, if
# ``z = x * x * x + x``?

your_count = ...


def arrows_from_x():
    x = Tensor(2.0, requires_grad=True)
    z = x * x * x + x
    return sum(
        parent is x.node for step in z.backward_steps(retain_graph=True) for parent in step.node.parents
    )


check("as many as there are arrows from x on the tape", lambda: your_count == arrows_from_x())

# %%
# **Exercise 3.** A *bias* b of shape (3,) is added to each row of x, of shape (4, 3): ``y = x + b``. NumPy
# repeats b for every row. You get ``dy``, of shape (4, 3). What is the gradient of b? Remember the sum where
# ways meet.


def your_bias_gradient(dy):
    """The gradient of b."""
    ...


def bias_gradient_of_the_tape(dy):
    rows, b = Tensor(np.ones((4, 3))), Tensor(np.zeros(3), requires_grad=True)
    (rows + b).backward(dy)
    return b.grad


upstream = np.random.default_rng(1).normal(size=(4, 3))
check("it has the shape of b", lambda: np.shape(your_bias_gradient(upstream)) == (3,))
check(
    "it is the gradient of the tape",
    lambda: np.allclose(your_bias_gradient(upstream), bias_gradient_of_the_tape(upstream)),
)

# %%
# What you now know
# -----------------
#
# * A tensor is an array plus an entry on the tape: an operation and its parents.
# * The backward pass walks the tape from the last operation to the leaves and passes on one gradient per
#   parent.
# * What is used in several places gets the sum of the gradients that come back.
# * An operation is a forward computation and a ``backward(dy)``, joined by ``record``.
# * Training is: forward, clear the gradients, backward, a small step against the gradient.
