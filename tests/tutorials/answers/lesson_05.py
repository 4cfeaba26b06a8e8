"""The answers to the exercises of lesson 05: a right one, and wrong ones that a reader might well give."""


# %% exercise 1, right
def your_residual_backward(dy, w):
    return dy + dy @ w.T


# %% exercise 1, wrong: forgets what comes back over the shortcut
def your_residual_backward(dy, w):
    return dy @ w.T


# %% exercise 1, wrong: forgets to transpose
def your_residual_backward(dy, w):
    return dy + dy @ w


# %% exercise 2, right
def your_shrinkage(layers):
    return 2 ** (-layers / 2)


# %% exercise 2, wrong: that of the squares
def your_shrinkage(layers):
    return 2.0**-layers


# %% exercise 2, wrong: divides by two once for every two layers, and adds up
def your_shrinkage(layers):
    return 1 / layers


# %% exercise 3, right
your_last_gamma = 0.0

# %% exercise 3, wrong: where batch norms usually start
your_last_gamma = 1.0

# %% exercise 3, wrong: the start of the SIGNS recipe, small but not nothing
your_last_gamma = 0.25
