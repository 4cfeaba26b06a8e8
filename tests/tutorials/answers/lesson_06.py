"""The answers to the exercises of lesson 06: a right one, and wrong ones that a reader might well give."""


# %% exercise 1, right
def your_block_backward(dy, y, branch_backward):
    g = dy * (y > 0)
    return g + branch_backward(g)


# %% exercise 1, wrong: forgets the shortcut
def your_block_backward(dy, y, branch_backward):
    return branch_backward(dy * (y > 0))


# %% exercise 1, wrong: forgets the ReLU
def your_block_backward(dy, y, branch_backward):
    return dy + branch_backward(dy)


# %% exercise 1, wrong: the ReLU on the branch only
def your_block_backward(dy, y, branch_backward):
    return dy + branch_backward(dy * (y > 0))


# %% exercise 2, right
your_shape = (2, 8, 8, 512)
your_count = 256 * 512 + 512


# %% exercise 2, wrong: rounds down, and forgets the bias
your_shape = (2, 7, 7, 512)
your_count = 256 * 512


# %% exercise 2, wrong: takes the shortcut for a 3x3
your_shape = (2, 8, 8, 512)
your_count = 9 * 256 * 512 + 512


# %% exercise 3, right
def your_share(s):
    return 1 - 1 / s**2


# %% exercise 3, wrong: the share that gets one
def your_share(s):
    return 1 / s**2


# %% exercise 3, wrong: counts rows only
def your_share(s):
    return 1 - 1 / s
