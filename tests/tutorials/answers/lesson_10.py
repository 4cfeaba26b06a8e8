"""The answers to the exercises of lesson 10: a right one, and wrong ones that a reader might well give."""


# %% exercise 1, right
def your_paths_left(units, deleted):
    return 2 ** (units - deleted)


# %% exercise 1, wrong: takes the deleted ones from the paths, not from the units
def your_paths_left(units, deleted):
    return 2**units - deleted


# %% exercise 1, wrong: forgets the path through no branch
def your_paths_left(units, deleted):
    return 2 ** (units - deleted) - 1


# %% exercise 2, right
def your_four_gradients(dz, w1, w2):
    return [dz, dz @ w1.T, dz @ w2.T, dz @ w2.T @ w1.T]


# %% exercise 2, wrong: goes through the branches in the order of the forward pass
def your_four_gradients(dz, w1, w2):
    return [dz, dz @ w1.T, dz @ w2.T, dz @ w1.T @ w2.T]


# %% exercise 2, wrong: forgets the path through no branch
def your_four_gradients(dz, w1, w2):
    return [dz @ w1.T, dz @ w2.T, dz @ w2.T @ w1.T]


# %% exercise 2, wrong: mixes up the two paths through one branch
def your_four_gradients(dz, w1, w2):
    return [dz, dz @ w2.T, dz @ w1.T, dz @ w2.T @ w1.T]


# %% exercise 3, right
def your_share(units, length):
    return sum(comb(units, k) for k in range(length + 1)) / 2**units


# %% exercise 3, wrong: exactly that length
def your_share(units, length):
    return comb(units, length) / 2**units


# %% exercise 3, wrong: one length too few
def your_share(units, length):
    return sum(comb(units, k) for k in range(length)) / 2**units
