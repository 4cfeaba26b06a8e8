"""The answers to the exercises of lesson 14: a right one, and wrong ones that a reader might well give."""


# %% exercise 1, right
def your_share(pictures, rank, size):
    return rank * pictures // size, (rank + 1) * pictures // size


# %% exercise 1, wrong: leaves out what cannot be shared equally
def your_share(pictures, rank, size):
    each = pictures // size
    return rank * each, (rank + 1) * each


# %% exercise 1, wrong: gives all that is left to the last rank
def your_share(pictures, rank, size):
    each = pictures // size
    return rank * each, pictures if rank == size - 1 else (rank + 1) * each


# %% exercise 1, wrong: rounds up, so the last ranks have too few
def your_share(pictures, rank, size):
    each = -(-pictures // size)
    return min(rank * each, pictures), min((rank + 1) * each, pictures)


# %% exercise 1, wrong: gives the number of the last picture, not the one behind it
def your_share(pictures, rank, size):
    return rank * pictures // size, (rank + 1) * pictures // size - 1


# %% exercise 2, right
def your_factor(own, pictures, size):
    return size * own / pictures


# %% exercise 2, wrong: the weight of a sum, which the mean divides by the ranks once more
def your_factor(own, pictures, size):
    return own / pictures


# %% exercise 2, wrong: the plain mean over ranks
def your_factor(own, pictures, size):
    return 1


# %% exercise 2, wrong: the other way round, so a rank with few pictures counts more
def your_factor(own, pictures, size):
    return pictures / (size * own)


# %% exercise 3, right
def your_bytes(nbytes, size):
    return 2 * (size - 1) * nbytes // size


# %% exercise 3, wrong: only the half in which pieces are added
def your_bytes(nbytes, size):
    return (size - 1) * nbytes // size


# %% exercise 3, wrong: the whole array in each step
def your_bytes(nbytes, size):
    return 2 * (size - 1) * nbytes


# %% exercise 3, wrong: as many steps as ranks, not one less
def your_bytes(nbytes, size):
    return 2 * nbytes
