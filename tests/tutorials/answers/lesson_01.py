"""The answers to the exercises of lesson 01: a right one, and wrong ones that a reader might well give."""


# %% exercise 1, right
def your_cube_backward(dy, x):
    return dy * 3 * x**2


# %% exercise 1, wrong: the slope alone, without what came from above
def your_cube_backward(dy, x):
    return 3 * x**2


# %% exercise 1, wrong: adds what must be multiplied
def your_cube_backward(dy, x):
    return dy + 3 * x**2


# %% exercise 2, right
your_count = 4

# %% exercise 2, wrong: counts the operations
your_count = 3


# %% exercise 3, right
def your_bias_gradient(dy):
    return dy.sum(axis=0)


# %% exercise 3, wrong: the mean of the rows
def your_bias_gradient(dy):
    return dy.mean(axis=0)


# %% exercise 3, wrong: passes dy on as it is
def your_bias_gradient(dy):
    return dy


# %% exercise 3, wrong: sums along the wrong axis
def your_bias_gradient(dy):
    return dy.sum(axis=1)
