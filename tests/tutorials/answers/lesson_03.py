"""The answers to the exercises of lesson 03: a right one, and wrong ones that a reader might well give."""


# %% exercise 1, right
def your_output_size(size, kernel, stride, padding):
    return (size + 2 * padding - kernel) // stride + 1


# %% exercise 1, wrong: counts the steps, not the places
def your_output_size(size, kernel, stride, padding):
    return (size + 2 * padding - kernel) // stride


# %% exercise 1, wrong: pads one side only
def your_output_size(size, kernel, stride, padding):
    return (size + padding - kernel) // stride + 1


# %% exercise 1, wrong: rounds up where the last step does not fit
def your_output_size(size, kernel, stride, padding):
    return -(-(size + 2 * padding - kernel) // stride) + 1


# %% exercise 2, right
your_kernel = [[0, 0, 0], [1, 0, 0], [0, 0, 0]]

# %% exercise 2, wrong: flips the kernel, as a mathematician's convolution would
your_kernel = [[0, 0, 0], [0, 0, 1], [0, 0, 0]]

# %% exercise 2, wrong: moves down
your_kernel = [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


# %% exercise 3, right
def your_pointwise_backward(dy, x, w):
    dw = x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])
    return dy @ w.T, dw


# %% exercise 3, wrong: forgets to transpose w, which only shows where w is not square
def your_pointwise_backward(dy, x, w):
    dw = x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])
    return dy @ w, dw


# %% exercise 3, wrong: dw transposed
def your_pointwise_backward(dy, x, w):
    dw = dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return dy @ w.T, dw


# %% exercise 3, wrong: the mean over the pixels, not the sum
def your_pointwise_backward(dy, x, w):
    pixels = x.reshape(-1, x.shape[-1])
    return dy @ w.T, pixels.T @ dy.reshape(-1, dy.shape[-1]) / len(pixels)
