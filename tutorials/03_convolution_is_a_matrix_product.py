"""
03 · Convolution is a matrix product
====================================

You turn the six loops of a convolution into one matrix product, forward and backward.

A convolution slides a small window over a picture and takes a weighted sum at every place. After this lesson
it is ``columns @ w`` to you, and you know its gradient already. You need the tensor and the tape of lesson
01, and from lesson 02 the gradient check with a random upstream gradient. The code of minires that does the
same is ``minires/ops/conv2d/``.
"""

# %%
# This lesson imports the convolution of minires, to compare with, and a few pictures.

import matplotlib.pyplot as plt
import numpy as np

from minires import Tensor, gradcheck
from minires.data import find, load
from minires.data.hands import render
from minires.exercises import check
from minires.ops.conv2d import conv2d

# %%
# What a convolution does to a picture
# ------------------------------------
#
# Here is a picture of a hand: a photograph from the SIGNS set where you have it, else a rendered one. It is
# converted to grey, so it has one channel. An array of pictures has the axes N H W C: picture, row, column,
# channel.

if find("signs"):
    test = load("signs").test
    picture = test.images[test.labels == 5][0]
else:
    picture = render(5, seed=3)
grey = (picture / 255).mean(axis=2, keepdims=True).astype("float32")  # (H, W, C) with C = 1
print("picture", picture.shape, "->", grey.shape)

# %%
# The kernel ``w`` has the axes KH KW C O: its height and width, the channels that it reads, and the
# channels that it writes. This one reads one channel and writes two. Output channel 0 is the column on the
# right minus the column on the left: it answers to vertical edges. Output channel 1 is the row below minus
# the row above: it answers to horizontal edges. (These weights are known as the Sobel filter.)

sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], "float32")
w_edges = np.stack([sobel, sobel.T], axis=-1)[:, :, None, :]  # (KH, KW, C, O) = (3, 3, 1, 2)
edges = conv2d(Tensor(grey[None]), Tensor(w_edges)).numpy()[0]
print("x", grey.shape, " w", w_edges.shape, " y", edges.shape)

fig, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
axes[0].imshow(grey[:, :, 0], cmap="gray", vmin=0, vmax=1)
axes[0].set(title="x: the picture", xlabel="column (pixels)", ylabel="row (pixels)")
limit = abs(edges).max()
for channel, ax in enumerate(axes[1:]):
    shown = ax.imshow(edges[:, :, channel], cmap="PuOr", vmin=-limit, vmax=limit)
    title = ("y, channel 0: vertical edges", "y, channel 1: horizontal edges")[channel]
    ax.set(title=title, xlabel="column (pixels)", ylabel="row (pixels)")
fig.colorbar(shown, ax=axes, label="y (brightness difference)")

# %%
# In the picture above, what runs up and down shows in channel 0, such as the sides of the fingers; what
# runs across shows in channel 1, such as their tips. Two facts can be checked without looking. The weights
# of each output channel sum to zero, so a picture of one brightness gives zero everywhere. And if you
# exchange rows and columns of the picture, the two output channels exchange their places.

flat = conv2d(Tensor(np.full((1, 5, 5, 1), 0.7, "float32")), Tensor(w_edges)).numpy()
turned = conv2d(Tensor(grey.transpose(1, 0, 2)[None]), Tensor(w_edges)).numpy()[0]
assert abs(flat).max() < 1e-6
assert np.allclose(turned, edges.transpose(1, 0, 2)[:, :, ::-1], atol=1e-5)
print("a picture of one brightness gives at most", abs(flat).max())

# %%
# Six loops
# ---------
#
# This is the definition, for one picture::
#
#     y[i, j, o] = sum over kh, kw, c of x[i + kh, j + kw, c] * w[kh, kw, c, o]
#
# Three loops say which output is meant, three loops add up its terms. A batch would be a seventh loop
# around them. As is usual in deep learning the kernel is not flipped; the mathematician's name for this is
# cross-correlation.


def six_loops(x, w):
    """x (H, W, C), w (KH, KW, C, O) -> y (OH, OW, O)."""
    (height, width, channels), (size_h, size_w, _, outputs) = x.shape, w.shape
    y = np.zeros((height - size_h + 1, width - size_w + 1, outputs), x.dtype)
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            for o in range(outputs):
                for kh in range(size_h):
                    for kw in range(size_w):
                        for c in range(channels):
                            y[i, j, o] += x[i + kh, j + kw, c] * w[kh, kw, c, o]
    return y


rng = np.random.default_rng(0)
x = rng.standard_normal((6, 7, 2))
w = rng.standard_normal((3, 3, 2, 4))
y = six_loops(x, w)
assert np.allclose(y, conv2d(Tensor(x[None]), Tensor(w)).numpy()[0])
print("x", x.shape, " w", w.shape, " y", y.shape, " MACs", y.size * w[..., 0].size)

# %%
# The window becomes a row
# ------------------------
#
# Look at one place (i, j). All outputs there read the same numbers: the KH*KW*C numbers under the window.
# Write them side by side, and do so for each place: you get a matrix with one row per place. This step is
# called im2col, "image to columns". It computes nothing, it only copies.


def im2col(x, size_h, size_w):
    """x (H, W, C) -> columns (OH*OW, KH*KW*C)."""
    height, width, channels = x.shape
    oh, ow = height - size_h + 1, width - size_w + 1
    columns = np.empty((oh, ow, size_h, size_w, channels), x.dtype)
    for kh in range(size_h):
        for kw in range(size_w):
            columns[:, :, kh, kw] = x[kh : kh + oh, kw : kw + ow]  # this pixel of the window, at every place
    return columns.reshape(oh * ow, size_h * size_w * channels)


small = np.arange(25).reshape(5, 5, 1)
print(im2col(small, 3, 3))

# %%
# The next picture shows the same two arrays. The window stands at row 1, column 2 of the small picture. Its
# nine numbers are one row of the matrix: row 5, since places are counted in reading order, three to a line.

place_i, place_j = 1, 2
row = place_i * 3 + place_j
fig, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
for ax, array in zip(axes, (small[:, :, 0], im2col(small, 3, 3)), strict=True):
    ax.imshow(array, cmap="Blues", vmin=0, vmax=60)
    for (i, j), number in np.ndenumerate(array):
        ax.text(j, i, number, ha="center", va="center")
frame = {"fill": False, "edgecolor": "#d55e00", "linewidth": 3}
axes[0].add_patch(plt.Rectangle((place_j - 0.5, place_i - 0.5), 3, 3, **frame))
axes[0].set(title="x, and the window at (1, 2)", xlabel="column of x", ylabel="row of x")
axes[1].add_patch(plt.Rectangle((-0.5, row - 0.5), 9, 1, **frame))
axes[1].set(title="im2col(x): the same nine numbers", xlabel="kh * 3 + kw", ylabel="place: i * 3 + j")
assert np.array_equal(im2col(small, 3, 3)[row], small[1:4, 2:5].ravel())

# %%
# The kernel becomes a matrix too, with a column per output channel. Its KH*KW*C rows stand in the same
# order as the numbers in a row of ``columns``, so a plain ``reshape`` does it. Three of the six loops were
# the sum over kh, kw, c. That sum, for all places and all output channels at once, is one matrix product.

columns = im2col(x, 3, 3)  # (OH*OW, KH*KW*C)
matrix = w.reshape(-1, 4)  # (KH*KW*C, O)
product = (columns @ matrix).reshape(y.shape)
print(columns.shape, "@", matrix.shape, "->", (columns @ matrix).shape)
assert np.allclose(product, y)

# %%
# Nothing was saved in arithmetic: the number of MACs (multiply-accumulates: a product, added to a sum) is
# what it was. What changed is their order, and a matrix product is what processors do best. Lesson 12
# measures by how much. The price is memory: a number of ``x`` is copied once for each window that reads it.
# With a border that keeps the size, that is KH*KW copies.

padded = np.pad(grey, ((1, 1), (1, 1), (0, 0)))
copies = im2col(padded, 3, 3).size / grey.size
print("numbers in columns / numbers in x:", copies)
assert copies == 9

# %%
# Padding, stride and the batch
# -----------------------------
#
# They change which rows the matrix has, and nothing else. Padding is a border of zeros around ``x``. With
# stride 2 only every second place along each axis gets a row. The rows of all pictures of a batch stand
# below one another.

batch, kernel = Tensor(rng.standard_normal((2, 6, 7, 2))), Tensor(w)
border = ((0, 0), (1, 1), (1, 1), (0, 0))
whole = conv2d(batch, kernel, padding=1).numpy()
assert np.allclose(whole, conv2d(Tensor(np.pad(batch.numpy(), border)), kernel).numpy())
strided = conv2d(batch, kernel, padding=1, stride=2).numpy()
assert np.allclose(strided, whole[:, ::2, ::2])
print("stride 1:", whole.shape, " stride 2:", strided.shape)

# %%
# A 1x1 convolution is the product alone
# --------------------------------------
#
# With a 1x1 window a row of ``columns`` is one pixel, so ``columns`` is the picture itself, read as a
# matrix of pixels times channels. Nothing has to be copied. Each pixel is treated by itself; what a 1x1
# convolution mixes is channels. Bottleneck blocks (lesson 06) consist of them for the larger part.

x_many = rng.standard_normal((1, 8, 8, 16))
w_point = rng.standard_normal((1, 1, 16, 4))
pixels = x_many.reshape(-1, 16)
assert np.shares_memory(pixels, x_many)
y_point = conv2d(Tensor(x_many), Tensor(w_point)).numpy()
assert np.allclose(y_point, (pixels @ w_point[0, 0]).reshape(1, 8, 8, 4))
print("pixels", pixels.shape, "@ w", w_point[0, 0].shape, "->", y_point.shape)

# %%
# Backward: the product
# ---------------------
#
# In a product ``y = columns @ w`` each of the two factors gets its gradient by a product again::
#
#     dw       = columns^T @ dy        (KH*KW*C, O)
#     dcolumns = dy @ w^T              (OH*OW, KH*KW*C)
#
# ``dw`` is finished. ``dcolumns`` is the gradient of the copies that im2col made, not yet that of ``x``.

dy = rng.standard_normal(y.shape)
dy_rows = dy.reshape(-1, 4)
dw = (columns.T @ dy_rows).reshape(w.shape)
dcolumns = dy_rows @ matrix.T
print("dw", dw.shape, " dcolumns", dcolumns.shape)

# %%
# Backward: the copies
# --------------------
#
# One number of ``x`` was copied to several rows. Each copy sends its own gradient, and gradients of one
# number add up. So the way back has the same loops and the same slices as im2col. Where im2col reads, it
# adds. Its name is col2im.


def col2im(columns, shape, size_h, size_w):
    """columns (OH*OW, KH*KW*C) -> (H, W, C): add each number to the pixel it was copied from."""
    height, width, channels = shape
    oh, ow = height - size_h + 1, width - size_w + 1
    columns = columns.reshape(oh, ow, size_h, size_w, channels)
    x = np.zeros(shape, columns.dtype)
    for kh in range(size_h):
        for kw in range(size_w):
            x[kh : kh + oh, kw : kw + ow] += columns[:, :, kh, kw]
    return x


dx = col2im(dcolumns, x.shape, 3, 3)
print("dx", dx.shape)

# %%
# im2col is linear, so it is a matrix, although nobody writes it down. The backward of a linear step is its
# transpose, also called its adjoint. The adjoint is defined by one equation, which must hold for all ``x``
# and all ``c``::
#
#     sum(im2col(x) * c) = sum(x * col2im(c))
#
# With random arrays on both sides this is a sharp test of any pair of such functions.

c = rng.standard_normal(columns.shape)
left, right = (columns * c).sum(), (x * col2im(c, x.shape, 3, 3)).sum()
print(left, "=", right)
assert np.isclose(left, right)

# %%
# Give col2im a matrix of ones, and it counts how many windows see each pixel. The picture below shows it
# for the 5x5 picture: once in a corner, nine times in the middle. Pixels in the middle collect their
# gradient from more outputs.

counts = col2im(np.ones((9, 9)), (5, 5, 1), 3, 3)[:, :, 0]
fig, ax = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
shown = ax.imshow(counts, cmap="viridis", vmin=0, vmax=9)
for (i, j), number in np.ndenumerate(counts):
    ax.text(j, i, int(number), ha="center", va="center", color="black" if number > 4 else "white")
ax.set(title="windows over each pixel", xlabel="column of x", ylabel="row of x")
fig.colorbar(shown, label="number of 3x3 windows")
assert counts[0, 0] == 1 and counts[2, 2] == 9 and counts.sum() == 9 * 9

# %%
# Now the whole backward against minires: the same upstream gradient, the same ``dx`` and ``dw``. The
# gradient check of lesson 02 says that minires is right too, here with padding and stride.

x_tensor, w_tensor = Tensor(x[None], requires_grad=True), Tensor(w, requires_grad=True)
conv2d(x_tensor, w_tensor).backward(dy[None])
assert np.allclose(x_tensor.grad[0], dx) and np.allclose(w_tensor.grad, dw)
report = gradcheck(lambda x, w: conv2d(x, w, stride=2, padding=1), {"x": x[None], "w": w})
print(report)
assert report.ok

# %%
# Exercises
# ---------
#
# Replace each ``...`` and run the lesson again.

# %%
# **Exercise 1.** How many places has a window? For a picture of ``size`` rows, a window of ``kernel`` rows
# that moves by ``stride``, and ``padding`` rows of zeros on both sides, return the number of rows of the
# output.


def your_output_size(size, kernel, stride, padding):
    """Return the number of rows of the output."""
    ...


def is_right(size, kernel, stride, padding):
    x, w = np.zeros((1, size, size, 1)), np.zeros((kernel, kernel, 1, 1))
    rows = conv2d(Tensor(x), Tensor(w), stride=stride, padding=padding).shape[1]
    return your_output_size(size, kernel, stride, padding) == rows


check("a 3x3 window on 6 rows", lambda: is_right(6, 3, stride=1, padding=0))
check("with padding", lambda: is_right(6, 3, stride=1, padding=1))
check("with stride 2", lambda: is_right(7, 3, stride=2, padding=1))
check("with stride 2, where the last step does not fit", lambda: is_right(6, 3, stride=2, padding=0))
check("the first layer of ResNet", lambda: is_right(224, 7, stride=2, padding=3))

# %%
# **Exercise 2.** Find a 3x3 kernel that moves a picture by one pixel to the right: with padding 1, the
# output at column j is the input at column j - 1, and column 0 becomes zero. Give it as a list of three
# lists of three numbers.

your_kernel = ...


def moved(kernel):
    x = np.random.default_rng(1).standard_normal((1, 5, 6, 1)).astype("float32")
    w = np.array(kernel, "float32").reshape(3, 3, 1, 1)
    return x[0, :, :, 0], conv2d(Tensor(x), Tensor(w), padding=1).numpy()[0, :, :, 0]


def is_moved(kernel):
    x, y = moved(kernel)
    return np.allclose(y[:, 1:], x[:, :-1])


check("each pixel went one column to the right", lambda: is_moved(your_kernel))
check("column 0 is zero", lambda: not moved(your_kernel)[1][:, 0].any())

# %%
# **Exercise 3.** Write the backward of a 1x1 convolution: from ``dy`` (N, H, W, O), ``x`` (N, H, W, C) and
# ``w`` (C, O) return ``dx`` and ``dw``. No loop is needed.


def your_pointwise_backward(dy, x, w):
    """Return dx and dw."""
    ...


def pointwise_backward_of_minires(dy, x, w):
    x, w = Tensor(x, requires_grad=True), Tensor(w[None, None], requires_grad=True)
    conv2d(x, w).backward(dy)
    return x.grad, w.grad[0, 0]


def agrees(which, channels, outputs):
    rng = np.random.default_rng(2)
    shapes = (2, 3, 4, outputs), (2, 3, 4, channels), (channels, outputs)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    return np.allclose(your_pointwise_backward(*arrays)[which], pointwise_backward_of_minires(*arrays)[which])


check("dx", lambda: agrees(0, channels=5, outputs=2))
check("dw", lambda: agrees(1, channels=5, outputs=2))
check("dx and dw with as many outputs as channels", lambda: agrees(0, 3, 3) and agrees(1, 3, 3))

# %%
# What you now know
# -----------------
#
# - im2col writes the numbers under the window into a row; then convolution is ``columns @ w``.
# - Padding, stride and batch only decide which rows there are; a 1x1 convolution needs no im2col.
# - The backward is two more products, and col2im, which adds where im2col reads.
# - An adjoint can be tested with one equation and random arrays.
