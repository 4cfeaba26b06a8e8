"""The answers to the exercises of lesson 11: a right one, and wrong ones that a reader might well give."""


# %% exercise 1, right
def your_view(kernels):
    return 1 + sum(k - 1 for k in kernels)


# %% exercise 1, wrong: adds the sides
def your_view(kernels):
    return sum(kernels)


# %% exercise 1, wrong: multiplies the sides
def your_view(kernels):
    return int(np.prod(kernels))


# %% exercise 1, wrong: right for kernels of 3 only
def your_view(kernels):
    return 2 * len(kernels) + 1


# %% exercise 2, right
def your_weights(channels, C, d):
    return C * (channels * d + 9 * d * d + d * channels)


# %% exercise 2, wrong: the 3x3 reads all paths
def your_weights(channels, C, d):
    return channels * C * d + 9 * (C * d) ** 2 + C * d * channels


# %% exercise 2, wrong: one path of the C
def your_weights(channels, C, d):
    return channels * d + 9 * d * d + d * channels


# %% exercise 3, right
def your_gate(x, w1, w2):
    z = x.mean(axis=(1, 2))
    s = 1 / (1 + np.exp(-np.maximum(z @ w1, 0) @ w2))
    return x * s[:, None, None, :]


# %% exercise 3, wrong: no ReLU between the dense layers
def your_gate(x, w1, w2):
    z = x.mean(axis=(1, 2))
    s = 1 / (1 + np.exp(-z @ w1 @ w2))
    return x * s[:, None, None, :]


# %% exercise 3, wrong: a ReLU at the end, too, in the place of the sigmoid
def your_gate(x, w1, w2):
    z = x.mean(axis=(1, 2))
    s = np.maximum(np.maximum(z @ w1, 0) @ w2, 0)
    return x * s[:, None, None, :]


# %% exercise 3, wrong: the mean of all pictures together
def your_gate(x, w1, w2):
    z = x.mean(axis=(0, 1, 2))
    s = 1 / (1 + np.exp(-np.maximum(z @ w1, 0) @ w2))
    return x * s
