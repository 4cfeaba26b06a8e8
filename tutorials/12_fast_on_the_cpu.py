"""
12 · Fast on the CPU: one convolution in five steps
===================================================

You write one convolution five times, from plain loops to what minires does, and see what each step gains.

The task is that of lesson 03. What changes is the order in which the arithmetic is done, where its numbers
lie, and who does it. Every version is compared with the right result first and timed after that. The times on
this page are those of the machine that made it, and of that moment; run the lesson to see yours.
"""

# %%
# The lesson needs the threads and the tiles of ``minires/backend/``, and the files in which minires
# convolves. Numba compiles Python functions. minires works without it, more slowly, and so does this lesson.
# ``threadpoolctl`` was installed with minires. It knows the library that NumPy multiplies matrices with.

import time
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from minires import Tensor, backend, ops
from minires.backend import simd
from minires.backend.simd import beside, listed, multiply_add, spread, store
from minires.exercises import check
from minires.inspect import summarize
from minires.nn import Conv2d, Sequential
from minires.ops.conv2d import conv2d, indirect, places, winograd
from minires.ops.window import window

print("threads:", backend.threads(), " Numba:", "yes" if backend.HAS_NUMBA else "no")

# %%
# The task
# --------
#
# A 3x3 convolution with 64 channels in and out, as in the first stage of a ResNet, on 16 pictures of 32x32.
# The unit is GFLOP/s: a thousand million floating-point operations a second. A multiply-add counts as two
# operations.

rng = np.random.default_rng(0)
x = rng.standard_normal((16, 32, 32, 64)).astype("float32")
w = rng.standard_normal((3, 3, 64, 64)).astype("float32")
padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
y_shape = (16, 32, 32, 64)
y = np.zeros(y_shape, "float32")
operations = 2 * np.prod(y_shape) * 3 * 3 * 64
print("operations:", f"{operations:,}")

# %%
# The right result comes from the matrix product of lesson 03 in float64. A version may differ from it by
# roundings only. Each is run until a fifth of a second has gone by, and the best time counts: whatever else
# the machine does can only make a run slower.
#
# NumPy hands its matrix products to a library, BLAS, which has threads of its own. Here it gets one. So steps
# 1 to 4 run on one core and can be compared; step 5 takes all cores. BLAS has other code for each kind of
# processor, and chooses the newest that yours can run, unless an environment variable holds it back;
# ``minires doctor`` finds such a variable.

for library in threadpool_info():
    if library["user_api"] == "blas":
        print("BLAS:", library["internal_api"], library["version"], library.get("architecture"))


def columns_of(lines, oh):
    """(N, OH + 2, OW + 2, C) -> (N*OH*OW, 9*C)."""
    n, _, width, channels = lines.shape
    columns = np.empty((n, oh, width - 2, 3, 3, channels), lines.dtype)
    for kh in range(3):
        for kw in range(3):
            columns[:, :, :, kh, kw] = lines[:, kh : kh + oh, kw : kw + width - 2]
    return columns.reshape(-1, 9 * channels)


right = (columns_of(padded.astype("float64"), 32) @ w.reshape(-1, 64)).reshape(y_shape)


def is_right(y):
    return abs(y - right).max() < 1e-4 * abs(right).max()


def best_seconds(run):
    times, start = [], time.perf_counter()
    with threadpool_limits(1, user_api="blas"):
        while not times or time.perf_counter() - start < 0.2:
            before = time.perf_counter()
            run()
            times.append(time.perf_counter() - before)
    return min(times)


gflops = {}


def measure(name, run):
    """Time ``run``, which writes its result into ``y``."""
    y[...] = 0
    run()  # this also compiles what is to be compiled, before the clock runs
    assert is_right(y), name
    gflops[name] = operations / best_seconds(run) / 1e9
    print(f"{name:28} {gflops[name]:9.3f} GFLOP/s")


# %%
# Step 1: loops
# -------------
#
# The loops of lesson 03. Python takes so long for the whole task that only two places are computed and
# timed here; the rate in GFLOP/s is that of these two.


def loops(padded, w, y, places):
    """Convolve at the first ``places`` of the first line of the first picture."""
    for j in range(places):
        for o in range(w.shape[3]):
            total = 0.0
            for kh in range(3):
                for kw in range(3):
                    for c in range(w.shape[2]):
                        total += padded[0, kh, j + kw, c] * w[kh, kw, c, o]
            y[0, 0, j, o] = total


start = time.perf_counter()
loops(padded, w, y, 2)
rate = operations * 2 / (16 * 32 * 32) / (time.perf_counter() - start) / 1e9
assert np.allclose(y[0, 0, :2], right[0, 0, :2], atol=1e-3)
gflops["1 loops"] = rate
print(f"1 loops: {rate:.4f} GFLOP/s, so the whole task would take {operations / rate / 1e9:.0f} s")

# %%
# Most of that time Python spends on finding out what ``+`` and ``*`` mean this time, and on objects for
# single numbers. A compiler does that once. ``@kernel`` has Numba compile a function for the types that it
# is called with. Here are the same loops, compiled, around all places.


def all_loops(padded, w, y):
    for n in range(y.shape[0]):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                for o in range(y.shape[3]):
                    total = 0.0
                    for kh in range(3):
                        for kw in range(3):
                            for c in range(w.shape[2]):
                                total += padded[n, i + kh, j + kw, c] * w[kh, kw, c, o]
                    y[n, i, j, o] = total


if backend.HAS_NUMBA:
    compiled = backend.kernel(all_loops)
    measure("  the same loops, compiled", lambda: compiled(padded, w, y))
else:
    print("Numba is not installed: the compiled loops are left out")

# %%
# Step 2: one large matrix product
# --------------------------------
#
# Compiled loops still add one number after the other, and the next number of ``w`` that they need lies a
# whole row of ``w`` further on. BLAS does better. It uses vector instructions, keeps a block of sums in the
# processor's registers, and goes through memory in an order that suits the caches. So make the columns of
# lesson 03 and multiply.

assert w.strides[2] == w.shape[3] * w.itemsize  # from one input channel to the next


def one_product():
    y[...] = (columns_of(padded, 32) @ w.reshape(-1, 64)).reshape(y_shape)


measure("2 one large product", one_product)
columns = columns_of(padded, 32)
print(f"the columns take {columns.nbytes / 2**20:.0f} MiB, x itself {x.nbytes / 2**20:.0f} MiB")
assert columns.nbytes == 9 * x.nbytes

# %%
# Step 3: blocks that stay in the cache
# -------------------------------------
#
# The columns are nine times as large as ``x``, too large for a core's own cache. They are written to
# memory, and the product reads them from there again. It is better to make the columns of a few lines of
# the output, multiply them while they are still in the cache, and go on with the next few.


def in_blocks(first, last, lines=8):
    """Convolve the pictures first..last, a few lines of the output at a time."""
    matrix = w.reshape(-1, 64)
    for n in range(first, last):
        for i in range(0, 32, lines):
            columns = columns_of(padded[n : n + 1, i : i + lines + 2], lines)
            np.matmul(columns, matrix, out=y[n, i : i + lines].reshape(-1, 64))


measure("3 in blocks", partial(in_blocks, 0, 16))
block = columns_of(padded[:1, :10], 8)
print(f"the columns of a block take {block.nbytes / 2**20:.2f} MiB")

# %%
# How large should a block be? Small blocks mean many calls, and products too small for BLAS to be fast. Large
# blocks no longer fit into a core's cache. The next picture shows step 3 with blocks from one line up to a
# whole picture. Look for the best place on your machine.

lines_of_block = [1, 2, 4, 8, 16, 32]
rates = []
for lines in lines_of_block:
    run = partial(in_blocks, 0, 16, lines=lines)
    y[...] = 0
    run()
    assert is_right(y)
    rates.append(operations / best_seconds(run) / 1e9)
sizes = [lines * 32 * 9 * 64 * 4 / 2**20 for lines in lines_of_block]
fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.plot(sizes, rates, "o-", color="#0072b2", linewidth=2)
ax.set_xscale("log", base=2)
ax.set_xticks(sizes, [f"{size:.2f}" for size in sizes])
ax.set(xlabel="columns of a block (MiB)", ylabel="GFLOP/s", ylim=(0, None), title="step 3, by size of block")

# %%
# How fast is the product alone, with a block of columns that is there already? Step 3 cannot be faster than
# that. What it lacks is the price of making columns.


def products_alone():
    for n in range(16):
        for i in range(0, 32, 8):
            np.matmul(block, w.reshape(-1, 64), out=y[n, i : i + 8].reshape(-1, 64))


alone = operations / best_seconds(products_alone) / 1e9
print(f"the product alone: {alone:.1f} GFLOP/s, with its columns: {gflops['3 in blocks']:.1f}")
print(f"part of the time that goes into columns: {1 - gflops['3 in blocks'] / alone:.0%}")

# %%
# Step 4: tiles instead of columns
# --------------------------------
#
# Here minires leaves columns and BLAS behind. Columns copy each number nine times. BLAS then copies them
# again, into an order of its own, and does the same with ``w`` for each block anew. And as it knows nothing
# of convolutions it also multiplies the zeros of the border. For a product that reads the pictures where they
# lie you need three things: a tile, a table and panels.
#
# **A tile.** A processor calculates in *registers*. A vector register holds several numbers, and one
# instruction multiplies them all and adds the products to another register. If each product needs a number of
# ``x``, one of ``w``, and a sum that is read and written, most of the time goes into reading and writing. So
# keep a block of sums in registers: R rows, one for each place of the output, and L columns, one for each
# output channel. Then a number of ``x`` meets L numbers of ``w``, and a number of ``w`` meets R of ``x``.

rows, vectors = tile_shape = simd.shape(64, np.float32)
R, L = len(rows), simd.width(tile_shape, np.float32)
print(f"this processor has {simd.processor()[1]} vector registers of {simd.lanes(np.float32)} numbers")
print(f"a tile has {R} x {L} sums, which take {R * len(vectors)} of them")
print(f"a step reads {R} + {L} numbers for {R * L} multiply-adds")
assert R * L > 2 * (R + L) and 64 % L == 0

# %%
# Numba does not keep such a block in registers by itself. ``minires/backend/simd.py`` teaches it to. The
# functions for tiles stand there twice: as plain NumPy code, which says what they mean, and as instructions
# for the compiler, which makes code for one size of tile. So two tuples of zeros say the size: one zero for
# each row, and one for each vector in a row. Here is the plain code at work, on a tile of two rows. ``lines``
# says where in the array the rows begin.

numbers = np.arange(100, dtype="float32")
tile = spread((0, 0), vectors, np.zeros(L, "float32"), 0)  # two rows of zeros
lines = beside((0, 0), numbers, 10, 5)  # from number 10 on, and from 15 on
tile = multiply_add(tile, lines, 3, numbers, 20)  # row r grows by lines[r][3] * numbers[20 : 20 + L]
print("two rows, the first three sums of each:", tile[:, :3].tolist())
assert np.array_equal(tile[:, :3], np.outer([13, 18], [20, 21, 22]))

# %%
# **A table.** Call the nine pixels of the window *taps*. Where is the pixel that a place of the output sees
# by a tap? A table answers. It has a line for each tap and a column for each place. It holds the position in
# ``x`` at which the channels of that pixel begin, or -1 where the tap sees the border: there the tile reads
# zeros. The table is made once and kept, and serves each step of a training. Other strides and borders only
# make another table. This is *indirect convolution* (Dukhan 2019, https://arxiv.org/abs/1907.02129).


def table_of(pictures, size, channels):
    """(9, places) for a 3x3 window with a border of one pixel."""
    lines = []
    for kh in range(3):
        for kw in range(3):
            down, across = np.arange(size)[:, None] + kh - 1, np.arange(size) + kw - 1
            inside = (down >= 0) & (down < size) & (across >= 0) & (across < size)
            of_one = np.where(inside, (down * size + across) * channels, -1).ravel()
            starts = np.arange(pictures)[:, None] * size * size * channels
            lines.append(np.where(of_one < 0, -1, starts + of_one).ravel())
    return np.array(lines, np.int32)


small = table_of(1, 4, 1)
fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
ax.imshow(small < 0, cmap="Greys", vmax=2, aspect="auto")
for tap, place in np.ndindex(small.shape):
    ax.text(place, tap, small[tap, place], ha="center", va="center")
ax.set_yticks(range(9), [f"{kh}, {kw}" for kh in range(3) for kw in range(3)])
ax.set(xticks=range(16), xlabel="place of the output", ylabel="tap: kh, kw")
ax.set_title("the table of a 4x4 picture with one channel; -1 is the border")
assert np.array_equal(small[4], np.arange(16)), "the tap in the middle sees the place itself"

# %%
# **Panels.** In each step a tile reads L numbers of ``w``, and in the next step the L numbers of the next
# input channel. So write them one behind the other, once for the whole batch. That is a *panel*: all that one
# tile reads of ``w``. Now the kernel of step 4 is short.

panels = np.ascontiguousarray(w.reshape(9 * 64, 64 // L, L).swapaxes(0, 1)).ravel()
count = 16 * 32 * 32  # places
tiles = -(-count // R)
table = np.full((9, tiles * R), -1, np.int32)  # the last tile may be larger than what is left
table[:, :count] = table_of(16, 32, 64)
zeros = np.zeros(64, "float32")


def by_tiles(rows, columns, x, table, across, zeros, panels, y, count, width, start, stop):
    """The tiles start..stop of y (places, 64); all arrays are flat."""
    for m in range(start * len(rows), stop * len(rows), len(rows)):
        for n in range(0, 64, width):
            o = n * 9 * 64
            tile = spread(rows, columns, zeros, 0)
            for tap in range(9):
                lines = listed(rows, x, 0, table, tap * across + m, zeros)
                for k in range(64):
                    tile = multiply_add(tile, lines, k, panels, o)
                    o += width
            store(tile, beside(rows, y, m * 64, 64), n, count - m, width)


arguments = (*tile_shape, x.ravel(), table.ravel(), tiles * R, zeros, panels, y.reshape(-1), count, L)
y[...] = 0
by_tiles(*arguments, 0, 2)  # as plain NumPy code, the first two tiles
assert np.allclose(y.reshape(-1, 64)[: 2 * R], right.reshape(-1, 64)[: 2 * R], atol=1e-3)
print("the plain code is right")

# %%
# And compiled, on one core still. Compare it with step 3, and with the matrix product alone.

if backend.HAS_NUMBA:
    compiled_tiles = backend.kernel(by_tiles)
    measure("4 tiles", lambda: compiled_tiles(*arguments, 0, tiles))
    print(f"tiles / blocks with columns: {gflops['4 tiles'] / gflops['3 in blocks']:.2f}")
    print(f"tiles / the product alone: {gflops['4 tiles'] / alone:.2f}")
else:
    print("Numba is not installed: the compiled tiles are left out")

# %%
# Step 5: threads
# ---------------
#
# Give each core some of the tiles. ``parallel_for`` cuts ``range(tiles)`` into one part per thread. The
# threads write to one array ``y``, yet never to the same number, since each has places of its own. Work that
# is cut along the output needs no lock. Step 3 can be cut in the same way, by pictures.
#
# There must be one layer of threads only. If each of our threads called a BLAS with threads of its own, these
# would fight for the cores. minires calls no BLAS here, so its own threads are all there are.

if backend.HAS_NUMBA:
    measure("5 tiles, on threads", lambda: backend.parallel_for(partial(compiled_tiles, *arguments), tiles))
measure("  step 3, on threads", lambda: backend.parallel_for(in_blocks, 16))


def own():
    y[...] = conv2d(Tensor(x), Tensor(w), padding=1).numpy()


measure("minires", own)
print(f"minires / loops: {gflops['minires'] / gflops['1 loops']:,.0f}")

# %%
# The picture shows all versions. Its axis is logarithmic: from one line of the grid to the next it is a
# factor of ten. If a step gains nothing with you, look whether something else keeps the cores busy. What
# minires does more than step 5 comes below: where it pays, it leaves work out.

fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
labels = [f"{name}: {value:.3g}" for name, value in gflops.items()]
ax.barh(labels, list(gflops.values()), color="#0072b2")
ax.axvline(alone, color="#d55e00", linestyle="--", linewidth=2, label="BLAS alone, one core")
ax.set(xscale="log", xlim=(min(gflops.values()) / 3, 3 * max(alone, *gflops.values())))
ax.set(xlabel="GFLOP/s (operations of the direct way)", title="one convolution, five steps")
ax.grid(axis="x", alpha=0.3)
ax.invert_yaxis()
ax.legend(loc="upper right")

# %%
# Leave out what sees only the border
# -----------------------------------
#
# In a deep layer pictures are small, and the border is a large part of what the window sees. Count the -1 in
# the table of a 4x4 picture: three of ten products are with zeros.

with_zeros = (small < 0).mean()
print(f"4x4: {with_zeros:.0%} of the products are with zeros; 32x32: {(table_of(1, 32, 1) < 0).mean():.0%}")
assert np.isclose(with_zeros, 1 - (10 / 12) ** 2)  # along each axis, 10 of 12 pixels are inside

# %%
# A tile can leave a tap out if all its places see the border by it. So the tables of minires
# (``conv2d/places.py``) have another order than ours: first the places of many pictures that see all taps,
# then those at the upper border, and so on. Places that lie side by side in the table then see the same.
# Count, in both orders, how many taps the tiles have to look at. (Where a tile sees the three pixels of a
# line, these lie one behind the other, and it reads them as one: ``sees`` counts them.)

ordered = places.forward(32, (4, 4, 64), 64, window("conv2d", (4, 4), (3, 3), 1, 1), 64, R)[0].places
by_picture = np.full((9, -(-32 * 16 // R) * R), -1)
by_picture[:, : 32 * 16] = table_of(32, 4, 64)
looked_at = (by_picture.reshape(9, -1, R) >= 0).any(axis=2)
print(f"picture by picture, tiles look at {looked_at.mean():.0%} of their taps")
seen = (ordered.sees > 0).mean()
print(f"border by border at {seen:.0%}; {1 - with_zeros:.0%} would be all that is needed")
assert 1 - with_zeros <= seen < looked_at.mean()

# %%
# Fewer multiplications
# ---------------------
#
# On large pictures nearly all taps see the picture. There minires can do fewer multiplications. Winograd
# (1980) found that two neighbouring outputs of a filter with three taps need four products, not six. With
# four inputs ``d`` and the filter ``g``::
#
#     y = A^T [(G g) * (B^T d)]          * is place by place: four products
#
# ``B^T`` and ``A^T`` only add and subtract. ``G g`` is computed once for the whole batch.

B_T = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
A_T = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
d, g = rng.standard_normal(4), rng.standard_normal(3)
products = (winograd.G @ g) * (B_T @ d)
print(products.size, "products give", A_T @ products, "=", np.correlate(d, g, "valid"))
assert products.size == 4 and np.allclose(A_T @ products, np.correlate(d, g, "valid"))

# %%
# Along both axes that makes 4 x 4 = 16 products for 2 x 2 outputs, where the direct way needs 36. Summed
# over the channels, each of the 16 is a matrix product (Lavin and Gray 2015). In minires the same tiles in
# registers do it. The price is the transforms before and after.

saving = (2 * 2 * 3 * 3) / (4 * 4)
assert saving == 2.25
print("fewer products by a factor of", saving)

# %%
# No way is the best for all
# --------------------------
#
# minires has three: tiles that read through a table (``conv2d/indirect.py``), Winograd
# (``conv2d/winograd.py``), and tiles for groups of few channels (``conv2d/narrow.py``). Winograd's transforms
# move each number a few more times, which pays if it meets many channels. The kernel becomes larger, 16
# numbers for 9, which pays if there are many places to use it for. Windows that are not 3x3, and strides,
# are for the tiles alone. Which way is taken is decided in ``conv2d/choose.py``, by rules that come from
# measurements like the next picture. ``conv2d.way`` tells it.

layers = {  # (N, H, W, C), (KH, KW, C, O), stride, padding
    "3x3, 16 -> 16\n32x32": ((32, 32, 32, 16), (3, 3, 16, 16), 1, 1),
    "3x3, 128 -> 128\n32x32": ((16, 32, 32, 128), (3, 3, 128, 128), 1, 1),
    "3x3, 512 -> 512\n4x4": ((16, 4, 4, 512), (3, 3, 512, 512), 1, 1),
    "1x1, 256 -> 64\n16x16": ((32, 16, 16, 256), (1, 1, 256, 64), 1, 0),
    "7x7, 3 -> 64\n64x64, /2": ((16, 64, 64, 3), (7, 7, 3, 64), 2, 3),
}
for name, (x_shape, w_shape, stride, padding) in layers.items():
    taken = ops.conv2d.way(x_shape, w_shape, stride=stride, padding=padding)
    print(f"{name.replace(chr(10), ', '):26}", taken.forward.name)

ways = {"indirect": indirect.forward, "Winograd": winograd.forward}


def rate_of(way, x_shape, w_shape, stride, padding):
    """GFLOP/s of a way that can do the layer."""
    x, w = (rng.standard_normal(shape).astype("float32") for shape in (x_shape, w_shape))
    win = window("conv2d", x_shape[1:3], w_shape[:2], stride, padding)
    expected = conv2d(Tensor(x), Tensor(w), stride=stride, padding=padding).numpy()
    assert np.allclose(way(x, w, None, False, win, 1), expected, atol=1e-2)
    amount = 2 * expected.size * w[..., 0].size
    return amount / best_seconds(lambda: way(x, w, None, False, win, 1)) / 1e9


fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
if backend.HAS_NUMBA:
    styles = zip(ways.items(), ("#0072b2", "#009e73"), ("", ".."), strict=True)
    for number, ((name, way), color, hatch) in enumerate(styles):
        able = [k for k, layer in enumerate(layers.values()) if name != "Winograd" or layer[1][0] == 3]
        rates = [rate_of(way, *list(layers.values())[k]) for k in able]
        bars = ax.bar([k + 0.4 * number - 0.2 for k in able], rates, 0.38, color=color, hatch=hatch)
        bars.set_label(name)
        ax.bar_label(bars, [f"{rate:.0f}" for rate in rates])
    ax.legend()
else:
    ax.text(0.5, 0.5, "these ways need Numba", ha="center", transform=ax.transAxes)
ax.set_xticks(range(len(layers)), layers)
ax.set(xlabel="layer: window, channels -> outputs; picture, /stride", ylabel="GFLOP/s", title="two ways")
ax.margins(y=0.1)

# %%
# Exercises
# ---------
#
# Replace each ``...`` and run the lesson again.

# %%
# **Exercise 1.** Count the multiply-accumulates (MACs) of a convolution of one picture with padding
# ``"same"``: ``size`` rows and columns, a window of ``kernel`` x ``kernel``, ``channels`` in, ``outputs``
# out, and a stride that divides the size.


def your_macs(size, kernel, channels, outputs, stride):
    """Return how many MACs there are."""
    ...


def is_count_right(size, kernel, channels, outputs, stride):
    rng = np.random.default_rng(0)
    layer = Conv2d(channels, outputs, kernel, stride=stride, padding="same", bias=False, rng=rng)
    counted = summarize(Sequential(conv=layer), (size, size, channels)).macs
    return your_macs(size, kernel, channels, outputs, stride) == counted


check("1x1, one channel", lambda: is_count_right(4, 1, 1, 1, 1))
check("3x3, several channels", lambda: is_count_right(4, 3, 2, 5, 1))
check("stride 2", lambda: is_count_right(32, 3, 16, 32, 2))

# %%
# **Exercise 2.** Multiply ``a @ b`` in blocks of at most ``rows`` rows of ``a``, for any number of rows of
# ``a``. Call ``product(block, b)`` for each block, in place of ``block @ b``, and return the whole result.
# The checks look at the blocks that you gave to ``product``.


def your_product_in_blocks(product, a, b, rows):
    """Return a @ b."""
    ...


def tried(m, rows):
    """Whether the result is right, and the number of rows of each block."""
    sizes = []

    def product(block, b):
        sizes.append(len(block))
        return block @ b

    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((m, 5)), rng.standard_normal((5, 3))
    result = your_product_in_blocks(product, a, b, rows)
    return result.shape == (m, 3) and np.allclose(result, a @ b), sizes


check("12 rows in blocks of 4", lambda: tried(12, 4)[0])
check("14 rows in blocks of 4", lambda: tried(14, 4)[0])
check("no block is larger than allowed", lambda: 0 < max(tried(14, 4)[1]) <= 4)
check("no row is computed twice", lambda: sum(tried(14, 4)[1]) == 14)

# %%
# **Exercise 3.** Winograd's way for ``m`` outputs of a filter with ``r`` taps needs ``m + r - 1`` products
# along one axis. By what factor does it save multiplications in two dimensions?


def your_saving(m, r):
    """Return direct products / Winograd's products, for m x m outputs and r x r taps."""
    ...


check("F(2x2, 3x3)", lambda: your_saving(2, 3) == 2.25)
check("one output at a time saves nothing", lambda: your_saving(1, 3) == 1)
check("a 1x1 window saves nothing", lambda: your_saving(4, 1) == 1)
check("the saving grows with m, but never to r x r", lambda: your_saving(2, 3) < your_saving(4, 3) < 9)

# %%
# What you now know
# -----------------
#
# - The same arithmetic runs at very different speeds: compiled code, registers, caches and cores decide.
# - Columns make a convolution a matrix product, but they are copies. A tile of sums in registers needs none:
#   it reads the pictures where they lie, through a table, and the kernel from panels.
# - One layer of threads, and each thread has a part of the output.
# - What is faster still does less arithmetic: no products with the border, and Winograd's way for 3x3.
# - Which way is the best depends on the layer, and only a measurement tells.
