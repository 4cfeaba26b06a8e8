"""Batch normalisation on the GPU: three launches forward, three backward, and nothing is read back.

The formulas are those of ``minires.ops.batch_norm``. In training

    batch_norm_sums             adds up x and x * x of each channel, each block for some of the rows
    batch_norm_statistics       adds up the sums of the blocks: mean and inv; it moves the running statistics
    batch_norm_normalize        gives y

    batch_norm_gradient_sums    adds up g and g * (x - mean) of each channel, each block for some of the rows
    batch_norm_gradient_totals  adds up the sums of the blocks: dbeta and dgamma
    batch_norm_gradient         gives dx, and dadd where it is needed

and in inference batch_norm_constants stands in place of the first two. Sums are always added up in the same
order, so that a run can be repeated to the last bit. They are kept in double, to which four rows at a time
are added, since GPUs are slower in double. They are taken of x minus its first row, so that a large common
mean does not eat the digits of the variance.

x may have gaps between its rows, as the first channels of a wider array have: from one row to the next it is
``stride`` numbers. All other arrays are (rows, channels) without gaps, or have a number per channel.
"""

from __future__ import annotations

from typing import Any

from minires import backend
from minires.backend import Array, cuda

_THREADS = 512  # of a block
_WIDTH = 32  # channels of a block: in float32 they are the 128 bytes that a warp reads at once

_CUDA = cuda.Source(
    f"#define THREADS {_THREADS}"
    r"""
// A block is `width` channels wide (a power of two) and THREADS / width rows high; neighbouring threads have
// neighbouring channels. Blocks side by side cover all channels; together they are a part, and the parts
// share the rows out among them.
struct Place {
    int part, parts, channel, row, step;  // step: from a row of this thread to its next

    __device__ Place(int channels, int width) {
        int across = (channels + width - 1) / width, height = THREADS / width;
        part = blockIdx.x / across;
        parts = gridDim.x / across;
        channel = blockIdx.x % across * width + threadIdx.x % width;
        row = part * height + threadIdx.x / width;
        step = parts * height;
    }
};

struct Sums { double first, second; };

// Adds up the sums of all threads of a channel. The first of them, one of the first `width`, gets the result.
__device__ Sums over_block(Sums own, int width) {
    __shared__ double first[THREADS], second[THREADS];
    int t = threadIdx.x;
    first[t] = own.first;
    second[t] = own.second;
    for (int half = THREADS / 2; half >= width; half /= 2) {
        __syncthreads();
        if (t < half) {
            first[t] += first[t + half];
            second[t] += second[t + half];
        }
    }
    return {first[t], second[t]};
}

// The sums of each part lie in partial (2, parts, channels).
__device__ void write_part(Sums own, Place at, int channels, int width, double* partial) {
    Sums sums = over_block(own, width);
    if (threadIdx.x < width && at.channel < channels) {
        partial[at.part * channels + at.channel] = sums.first;
        partial[(at.parts + at.part) * channels + at.channel] = sums.second;
    }
}

__device__ Sums over_parts(const double* partial, int parts, Place at, int channels, int width) {
    Sums own = {0, 0};
    if (at.channel < channels) {
        for (int part = at.row; part < parts; part += at.step) {
            own.first += partial[part * channels + at.channel];
            own.second += partial[(parts + part) * channels + at.channel];
        }
    }
    return over_block(own, width);
}

extern "C" __global__ void batch_norm_sums(
    const T* x /* (rows - 1) * stride + channels */, int stride, int rows, int channels, int width,
    double* partial /* 2 * channels * blocks // ((channels + width - 1) // width) */
) {
    Place at(channels, width);
    Sums own = {0, 0};
    if (at.channel < channels) {
        A shift = x[at.channel];
        for (int row = at.row; row < rows; row += 4 * at.step) {
            A total = 0, squares = 0;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                int m = row + k * at.step;
                A d = m < rows ? x[m * stride + at.channel] - shift : A(0);
                total += d;
                squares += d * d;
            }
            own.first += total;
            own.second += squares;
        }
    }
    write_part(own, at, channels, width, partial);
}

extern "C" __global__ void batch_norm_statistics(
    const T* x /* channels */, const double* partial /* 2 * parts * channels */, int parts, int rows,
    int channels, int width, A replaced, A correction, A eps,
    A* running_mean /* channels */, A* running_var /* channels */,
    A* mean /* channels */, A* inv /* channels */
) {
    Place at(channels, width);
    Sums sums = over_parts(partial, parts, at, channels, width);
    if (threadIdx.x >= width || at.channel >= channels) return;
    int c = at.channel;
    double offset = sums.first / rows, square = sums.second / rows - offset * offset;
    A m = x[c] + offset, var = square < 0 ? 0 : square;  // NaN stays NaN
    mean[c] = m;
    inv[c] = A(1) / sqrt(var + eps);
    A kept = A(1) - replaced;
    if (running_mean) running_mean[c] = kept * running_mean[c] + replaced * m;
    if (running_var) running_var[c] = kept * running_var[c] + replaced * (var * correction);
}

extern "C" __global__ void batch_norm_constants(
    const A* running_mean /* channels */, const A* running_var /* channels */, A eps,
    A* mean /* channels */, A* inv /* channels */, int channels
) {
    EACH(c, channels) {
        mean[c] = running_mean[c];
        inv[c] = A(1) / sqrt(running_var[c] + eps);
    }
}

// y before the addition. The backward finds its sign once more: to the last bit, hence the fma.
__device__ A normalized(A d, A scale, A beta) { return fma(d, scale, beta); }

extern "C" __global__ void batch_norm_normalize(
    const T* __restrict__ x /* (rows - 1) * stride + channels */, int stride,
    const A* gamma /* channels */, const A* beta /* channels */,
    const A* mean /* channels */, const A* inv /* channels */,
    const T* __restrict__ add /* rows * channels */, int relu, int rows, int channels, int width,
    T* __restrict__ y /* rows * channels */
) {
    Place at(channels, width);
    int c = at.channel;
    if (c >= channels) return;
    A middle = mean[c], scale = gamma[c] * inv[c], bias = beta[c];
#pragma unroll 4
    for (int m = at.row; m < rows; m += at.step) {
        int i = m * channels + c;
        A value = normalized(x[m * stride + c] - middle, scale, bias);
        if (add) value += add[i];
        y[i] = relu && value < 0 ? A(0) : value;  // NaN stays NaN
    }
}

// g, from dy at place i. Where nothing was added the sign of y follows from d = x - mean, and y is not given.
__device__ A before_relu(A dy, int relu, const T* y, int i, A d, A scale, A beta) {
    if (!relu) return dy;
    A value = y ? A(y[i]) : normalized(d, scale, beta);
    return value > 0 ? dy : A(0);
}

extern "C" __global__ void batch_norm_gradient_sums(
    const T* dy /* rows * channels */, const T* x /* (rows - 1) * stride + channels */, int stride,
    const T* y /* rows * channels */, const A* gamma /* channels */, const A* beta /* channels */,
    const A* mean /* channels */, const A* inv /* channels */, int relu, int rows, int channels, int width,
    double* partial /* 2 * channels * blocks // ((channels + width - 1) // width) */
) {
    Place at(channels, width);
    int c = at.channel;
    Sums own = {0, 0};
    if (c < channels) {
        A middle = mean[c], scale = gamma[c] * inv[c], bias = beta[c];
        for (int row = at.row; row < rows; row += 4 * at.step) {
            A total = 0, products = 0;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                int m = row + k * at.step;
                if (m < rows) {
                    int i = m * channels + c;
                    A d = x[m * stride + c] - middle;
                    A g = before_relu(dy[i], relu, y, i, d, scale, bias);
                    total += g;
                    products += g * d;
                }
            }
            own.first += total;
            own.second += products;
        }
    }
    write_part(own, at, channels, width, partial);
}

extern "C" __global__ void batch_norm_gradient_totals(
    const A* inv /* channels */, const double* partial /* 2 * parts * channels */, int parts, int channels,
    int width, A* dgamma /* channels */, A* dbeta /* channels */
) {
    Place at(channels, width);
    Sums sums = over_parts(partial, parts, at, channels, width);
    if (threadIdx.x >= width || at.channel >= channels) return;
    dbeta[at.channel] = sums.first;
    dgamma[at.channel] = sums.second * inv[at.channel];
}

extern "C" __global__ void batch_norm_gradient(
    const T* __restrict__ dy /* rows * channels */,
    const T* __restrict__ x /* (rows - 1) * stride + channels */, int stride,
    const T* __restrict__ y /* rows * channels */,
    const A* gamma /* channels */, const A* beta /* channels */, const A* mean /* channels */,
    const A* inv /* channels */, const A* dgamma /* channels */, const A* dbeta /* channels */,
    int relu, int training, int rows, int channels, int width,
    T* __restrict__ dx /* rows * channels */, T* __restrict__ dadd /* rows * channels */
) {
    Place at(channels, width);
    int c = at.channel;
    if (c >= channels) return;
    A middle = mean[c], scale = gamma[c] * inv[c], bias = beta[c];
    A slope = -scale * inv[c] * dgamma[c] / rows, offset = -scale * dbeta[c] / rows;
#pragma unroll 4
    for (int m = at.row; m < rows; m += at.step) {
        int i = m * channels + c;
        A d = x[m * stride + c] - middle;
        A g = before_relu(dy[i], relu, y, i, d, scale, bias);
        dx[i] = training ? scale * g + slope * d + offset : scale * g;
        if (dadd) dadd[i] = g;
    }
}
"""
)

# At most: four for each of the 132 multiprocessors of an H100, where so many find room at the same time. More
# would only leave more sums to be added up.
_BLOCKS = 528


def _cut(rows: int, channels: int) -> tuple[int, int, int]:
    """How many channels a block is wide, how many blocks cover all channels, and in how many parts the rows
    are cut. A thread gets four rows, more where there would be too many blocks."""
    width = min(_WIDTH, 1 << (channels - 1).bit_length())
    across, height = -(-channels // width), _THREADS // width
    return width, across, max(1, min(_BLOCKS // across, -(-rows // (4 * height))))


def _numbers(xp: Any, rows: Array) -> tuple[Array, int]:
    """The numbers from the first to the last of the rows (M, C), with those in the gaps, and the stride."""
    if rows.flags.c_contiguous:
        return rows, rows.shape[1]
    stride = rows.strides[0] // rows.itemsize
    size = (len(rows) - 1) * stride + rows.shape[1]
    return xp.lib.stride_tricks.as_strided(rows, (size,), (rows.itemsize,)), stride


def statistics(
    xp: Any,
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    replaced: float,
    correction: float,
    eps: float,
) -> tuple[Array, Array]:
    """Mean and 1 / sqrt(var + eps) of each channel of x (M, C), as (C,) each. The running statistics, where
    given, move towards those of x in place, by the share ``replaced``, the variance times ``correction``."""
    width, across, parts = _cut(*x.shape)
    numbers, stride = _numbers(xp, x)
    partial = xp.empty((2, parts, x.shape[1]), "float64")
    _CUDA("batch_norm_sums", (parts * across, _THREADS), numbers, stride, *x.shape, width, partial)
    dtype = backend.accumulator(x.dtype)
    mean, inv = xp.empty(x.shape[1], dtype), xp.empty(x.shape[1], dtype)
    running = (running_mean, running_var)
    moved = [None if given is None else xp.ascontiguousarray(given, dtype) for given in running]
    _CUDA(
        "batch_norm_statistics", (across, _THREADS), numbers, partial, parts, *x.shape, width,
        float(replaced), float(correction), float(eps), *moved, mean, inv,
    )  # fmt: skip
    for given, array in zip(running, moved, strict=True):
        if given is not None and given is not array:  # it has gaps, or another dtype
            given[...] = array
    return mean, inv


def constants(
    xp: Any, dtype: Any, running_mean: Array, running_var: Array, eps: float
) -> tuple[Array, Array]:
    """Mean and 1 / sqrt(var + eps) for inference, in new arrays: the running statistics may move later."""
    channels = len(running_mean)
    mean, inv = xp.empty(channels, dtype), xp.empty(channels, dtype)
    running = (xp.ascontiguousarray(array, dtype) for array in (running_mean, running_var))
    _CUDA("batch_norm_constants", cuda.over(channels), *running, float(eps), mean, inv, channels)
    return mean, inv


def forward(
    xp: Any, x: Array, gamma: Array, beta: Array, mean: Array, inv: Array, add: Array | None, relu: bool
) -> Array:
    """y (M, C)."""
    width, across, parts = _cut(*x.shape)
    numbers, stride = _numbers(xp, x)
    gamma, beta = xp.ascontiguousarray(gamma), xp.ascontiguousarray(beta)
    y = xp.empty(x.shape, x.dtype)
    _CUDA(
        "batch_norm_normalize", (parts * across, _THREADS), numbers, stride, gamma, beta, mean, inv,
        add, relu, *x.shape, width, y,
    )  # fmt: skip
    return y


def backward(
    xp: Any,
    dy: Array,
    x: Array,
    y: Array,
    gamma: Array,
    beta: Array,
    mean: Array,
    inv: Array,
    relu: bool,
    training: bool,
    added: bool,
    need_dadd: bool,
) -> tuple[Array, Array, Array, Array]:
    """dx, dgamma, dbeta and, where needed, dadd (else None)."""
    width, across, parts = _cut(*x.shape)
    numbers, stride = _numbers(xp, x)
    gamma, beta = xp.ascontiguousarray(gamma), xp.ascontiguousarray(beta)
    given = (dy, numbers, stride, y if added and relu else None, gamma, beta, mean, inv)
    partial = xp.empty((2, parts, x.shape[1]), "float64")
    blocks = (parts * across, _THREADS)
    _CUDA("batch_norm_gradient_sums", blocks, *given, relu, *x.shape, width, partial)
    dgamma, dbeta = xp.empty(x.shape[1], inv.dtype), xp.empty(x.shape[1], inv.dtype)
    totals = (inv, partial, parts, x.shape[1], width, dgamma, dbeta)
    _CUDA("batch_norm_gradient_totals", (across, _THREADS), *totals)
    dx, dadd = xp.empty(x.shape, x.dtype), xp.empty(x.shape, x.dtype) if need_dadd else None
    _CUDA("batch_norm_gradient", blocks, *given, dgamma, dbeta, relu, training, *x.shape, width, dx, dadd)
    return dx, dgamma, dbeta, dadd
