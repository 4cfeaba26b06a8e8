"""The answers to the exercises of lesson 12: a right one, and wrong ones that a reader might well give."""


# %% exercise 1, right
def your_macs(size, kernel, channels, outputs, stride):
    return (size // stride) ** 2 * outputs * kernel**2 * channels


# %% exercise 1, wrong: forgets that the window has two sides
def your_macs(size, kernel, channels, outputs, stride):
    return (size // stride) ** 2 * outputs * kernel * channels


# %% exercise 1, wrong: a stride saves places along one axis only
def your_macs(size, kernel, channels, outputs, stride):
    return size**2 // stride * outputs * kernel**2 * channels


# %% exercise 1, wrong: counts operations, two for each multiply-add
def your_macs(size, kernel, channels, outputs, stride):
    return 2 * (size // stride) ** 2 * outputs * kernel**2 * channels


# %% exercise 2, right
def your_product_in_blocks(product, a, b, rows):
    return np.concatenate([product(a[i : i + rows], b) for i in range(0, len(a), rows)])


# %% exercise 2, wrong: loses the rows of the last block, which is not full
def your_product_in_blocks(product, a, b, rows):
    return np.concatenate([product(a[i : i + rows], b) for i in range(0, len(a) - rows + 1, rows)])


# %% exercise 2, wrong: one block
def your_product_in_blocks(product, a, b, rows):
    return product(a, b)


# %% exercise 2, wrong: the last full block is computed again
def your_product_in_blocks(product, a, b, rows):
    result = np.empty((len(a), b.shape[1]))
    for i in range(0, len(a), rows):
        start = min(i, len(a) - rows)
        result[start : start + rows] = product(a[start : start + rows], b)
    return result


# %% exercise 3, right
def your_saving(m, r):
    return (m * r) ** 2 / (m + r - 1) ** 2


# %% exercise 3, wrong: along one axis
def your_saving(m, r):
    return m * r / (m + r - 1)


# %% exercise 3, wrong: upside down
def your_saving(m, r):
    return (m + r - 1) ** 2 / (m * r) ** 2
