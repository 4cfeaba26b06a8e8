"""What a thread has set for its operations: whether they are recorded, fused, watched, and in which module.

Each is set for a block of code, and is back as it was when the block ends: see :mod:`minires.settings`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from minires.settings import Block, Settings

F = TypeVar("F", bound=Callable[..., Any])


class _Mode(Settings):
    recording = True
    fused = True
    path = ""  # the path of the module whose forward is running, for the names of nodes
    tree: Any = None  # the paths inside the outermost module that is running: see minires.nn.paths
    watcher: Callable[[Any], None] | None = None
    across: Any = None  # the ranks over which batch norm takes its statistics together
    share: tuple[int, int, int] | None = None  # the pictures of a batch that are this rank's, and all of them
    bare = False  # whether hooks and changes of modules are left aside: see minires.nn.hooks


mode = _Mode()


def settings() -> dict[str, Any]:
    """What no_grad(), unfused(), watching(), the ranks and the module that runs have set for this thread."""
    return mode.now("recording", "fused", "path", "tree", "watcher", "across", "share")


def with_settings(**changes: Any) -> Block:
    """Change some of the :func:`settings` inside this block."""
    return mode.within(**changes)


@overload
def no_grad() -> Block: ...
@overload
def no_grad(function: F) -> F: ...
def no_grad(function: F | None = None) -> Block | F:
    """Record nothing on the tape inside this block: for evaluation and for updates of parameters.

    It may stand above a function, with or without parentheses; of a generator function it holds for the code
    of the generator, not for the code that takes from it.

    >>> from minires import Tensor
    >>> x = Tensor([1.0], requires_grad=True)
    >>> @no_grad
    ... def twice(x):
    ...     return 2 * x
    >>> with no_grad():
    ...     y = 2 * x
    >>> y.requires_grad, twice(x).requires_grad, (2 * x).requires_grad
    (False, False, True)
    """
    block = mode.within(recording=False)
    return block if function is None else block(function)


def is_recording() -> bool:
    """Whether operations are recorded on the tape now."""
    return mode.recording


@overload
def unfused() -> Block: ...
@overload
def unfused(function: F) -> F: ...
def unfused(function: F | None = None) -> Block | F:
    """Run fused operations as the separate steps they stand for, each a node of its own on the tape."""
    block = mode.within(fused=False)
    return block if function is None else block(function)


def is_fused() -> bool:
    """Whether fused operations run as one node now."""
    return mode.fused


def running() -> tuple[Any, str]:
    """The tree of the outermost module that is running in this thread, None for none, and the path now."""
    return mode.tree, mode.path


def enter(tree: Any, path: str) -> tuple[Any, str]:
    """Say that a module runs from now on. Returns what was before, to be given to ``enter`` afterwards."""
    before = mode.tree, mode.path
    mode.tree, mode.path = tree, path
    return before


def watching(watcher: Callable[[Any], None]) -> Block:
    """Call ``watcher`` with the :class:`~minires.tensor.Call` of every operation inside this block.

    It does not matter whether the operation is recorded on the tape.
    """
    return mode.within(watcher=watcher)


def is_watched() -> bool:
    """Whether somebody watches the operations now."""
    return mode.watcher is not None


def is_bare() -> bool:
    """Whether forward hooks, and what ``minires.intervene`` changes, are left aside now in this thread."""
    return mode.bare


def synchronised(ranks: Any) -> Block:
    """Inside this block batch norm, in training, takes its means and variances over the batches of all
    ``ranks`` together, a :class:`~minires.distributed.Communicator`; all of them must be in such a block."""
    return mode.within(across=ranks if ranks.size > 1 else None)


def across() -> Any:
    """The ranks over which batch norm takes its statistics together now; None for this process alone."""
    return mode.across


def share_of_batch(start: int, stop: int, pictures: int) -> Block:
    """Inside this block what the model is called with are the pictures ``start`` to ``stop`` of a batch of so
    many: what is drawn by chance is drawn for all of them, and the share of these is used."""
    return mode.within(share=None if (start, stop) == (0, pictures) else (start, stop, pictures))


def share() -> tuple[int, int, int] | None:
    """The share of a batch that this process has, as :func:`share_of_batch` says it; None for all of it."""
    return mode.share
