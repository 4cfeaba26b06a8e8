"""The answers to the exercises of lesson 04: a right one, and wrong ones that a reader might well give."""


# %% exercise 1, right
def your_avg_pool_backward(dy):
    return dy.repeat(2, axis=1).repeat(2, axis=2) / 4


# %% exercise 1, wrong: gives all of dy to each pixel
def your_avg_pool_backward(dy):
    return dy.repeat(2, axis=1).repeat(2, axis=2)


# %% exercise 1, wrong: gives all of dy to the first pixel, as if it had won
def your_avg_pool_backward(dy):
    n, oh, ow, c = dy.shape
    dx = np.zeros((n, 2 * oh, 2 * ow, c))
    dx[:, ::2, ::2] = dy
    return dx


# %% exercise 1, wrong: the pixels of a window are not side by side
def your_avg_pool_backward(dy):
    return np.tile(dy, (1, 2, 2, 1)) / 4


# %% exercise 2, right
def your_batch_norm_backward(dy, xhat, gamma, inv):
    return gamma * inv * (dy - dy.mean(axis=0) - xhat * (dy * xhat).mean(axis=0))


# %% exercise 2, wrong: takes mean and variance for constants, as in inference
def your_batch_norm_backward(dy, xhat, gamma, inv):
    return gamma * inv * dy


# %% exercise 2, wrong: forgets the way through the variance
def your_batch_norm_backward(dy, xhat, gamma, inv):
    return gamma * inv * (dy - dy.mean(axis=0))


# %% exercise 2, wrong: averages over the channels too
def your_batch_norm_backward(dy, xhat, gamma, inv):
    return gamma * inv * (dy - dy.mean() - xhat * (dy * xhat).mean())


# %% exercise 2, wrong: returns zeros, which a gradient of ones would not show
def your_batch_norm_backward(dy, xhat, gamma, inv):
    return np.zeros_like(dy)


# %% exercise 3, right
def your_residual_backward(dy, x, w):
    return dy + (dy * (x @ w > 0)) @ w.T


# %% exercise 3, wrong: forgets the shortcut
def your_residual_backward(dy, x, w):
    return (dy * (x @ w > 0)) @ w.T


# %% exercise 3, wrong: forgets the gate of the ReLU
def your_residual_backward(dy, x, w):
    return dy + dy @ w.T


# %% exercise 3, wrong: opens the gate where the whole result is positive
def your_residual_backward(dy, x, w):
    y = x + np.maximum(x @ w, 0)
    return dy + (dy * (y > 0)) @ w.T
