"""The reader of pickles without the process of its own: for tests that are not about that."""

import os


def in_this_process(read, path, *arguments, imports=(), error=None):
    """What :func:`minires.limits.apart` gives, without its limits."""
    return read(os.fspath(path), *arguments)
