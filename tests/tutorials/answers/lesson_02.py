"""The answers to the exercises of lesson 02: a right one, and wrong ones that a reader might well give."""

# %% exercise 1, right
your_set = {"b", "c"}

# %% exercise 1, wrong: forgets that a wrong sign of zero is zero
your_set = {"b"}

# %% exercise 1, wrong: takes the gradient for ones to be ones
your_set = {"a"}


# %% exercise 2, right
def your_leaky_backward(dy, x):
    return np.where(x > 0, dy, 0.1 * dy)


# %% exercise 2, wrong: the backward of the plain ReLU
def your_leaky_backward(dy, x):
    return np.where(x > 0, dy, 0)


# %% exercise 2, wrong: right numbers, but written into dy
def your_leaky_backward(dy, x):
    dy[x <= 0] *= 0.1
    return dy


# %% exercise 2, wrong: the slope without what came from above
def your_leaky_backward(dy, x):
    return np.where(x > 0, 1.0, 0.1)


# %% exercise 3, right
def your_error(analytic, numeric):
    return abs(analytic - numeric) / max(abs(analytic), abs(numeric), 1e-300)


# %% exercise 3, wrong: the absolute difference
def your_error(analytic, numeric):
    return abs(analytic - numeric)


# %% exercise 3, wrong: a guard against 0 / 0 that swallows small gradients
def your_error(analytic, numeric):
    return abs(analytic - numeric) / max(abs(analytic), abs(numeric), 1e-3)


# %% exercise 3, wrong: divides by zero when both are zero
def your_error(analytic, numeric):
    return abs(analytic - numeric) / max(abs(analytic), abs(numeric))
