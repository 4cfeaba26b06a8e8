"""Where the weights are in what a program of PyTorch's saved, and what it put before their names.

A checkpoint of a run holds its state dict one or more levels down (``state_dict``, ``model``), often beside
that of a moving average (``state_dict_ema``). And a model that was inside something has its name before each
tensor: ``model.`` of Lightning, ``backbone.``; ``module.`` of DataParallel and ``_orig_mod.`` of
torch.compile stand wherever a part was wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from minires.errors import CheckpointError

# Wrappers give a part this name; no network calls its own layers so.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
# Of several state dicts the first of these is the model ...
MODELS = (
    "state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "backbone",
    "student", "online",
)  # fmt: skip
AVERAGES = ("ema", "average", "averaged", "swa", "teacher", "shadow", "momentum", "target")
DEEPEST = 5  # levels of dicts
SHOWN = 6

IsTensor = Callable[[Any], bool]


def state_dict_in(
    content: Any, is_tensor: IsTensor, container: str | None = None
) -> tuple[dict[str, Any], str, list[str]]:
    """The state dict in what was saved, the path to it ("" for the whole), and the paths of the others.

    ``container`` is the path, or its end, of the one that is wanted. If none is so called, the only one there
    is, or the whole, is taken: it may mean the first part of the names in it.

    Raises: CheckpointError if there is none, or it cannot be told which of several is meant.
    """
    if isinstance(content, list | tuple):
        content = {str(number): value for number, value in enumerate(content)}
    if not isinstance(content, Mapping):
        raise CheckpointError(f"holds a {type(content).__name__}, not a state dict; save model.state_dict()")
    found = dict(_state_dicts(content, is_tensor))
    if not found:
        if not content:
            raise CheckpointError("holds an empty dict: there is no tensor in it")
        raise CheckpointError(
            f"holds no state dict, which is names of layers with their tensors; it has {_listed(content)}; "
            "save model.state_dict()"
        )
    taken = _chosen(list(found), container)
    state = found[taken]
    others = [f"{name} ({type(value).__name__})" for name, value in state.items() if not is_tensor(value)]
    if others:
        where = f"{taken}: " if taken else ""
        raise CheckpointError(
            f"{where}a state dict holds tensors alone, but {len(others)} of its {len(state)} entries are "
            f"none: {', '.join(others[:3])}; save model.state_dict()"
        )
    return dict(state), taken, [path for path in found if path != taken]


def _state_dicts(content: Mapping[Any, Any], is_tensor: IsTensor) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every state dict in there by its path: a dict with names that have a dot, and tensors."""
    rest: list[tuple[str, Mapping[Any, Any], int]] = [("", content, 1)]
    seen: set[int] = set()
    while rest:
        path, node, depth = rest.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        if any(isinstance(key, str) and "." in key and is_tensor(value) for key, value in node.items()):
            yield path, node
        elif depth < DEEPEST:
            for key, value in node.items():
                if isinstance(value, Mapping) and isinstance(key, str):
                    rest.append((f"{path}.{key}".removeprefix("."), value, depth + 1))


def _chosen(paths: list[str], container: str | None) -> str:
    if container is not None:
        fit = [path for path in paths if path == container or path.endswith(f".{container}")]
        fit = fit or [path for path in paths if is_called(path, container)]
        if len(fit) == 1:
            return fit[0]
        if fit:
            raise CheckpointError(f"{container!r} may be {' or '.join(fit)}; which one?")
    if len(paths) == 1:
        return paths[0]
    return preferred(paths) or _refused(paths, container)


def preferred(paths: Iterable[str]) -> str | None:
    """Of several places with weights the one that is the model itself, None if that cannot be told.

    >>> preferred(["state_dict_ema", "state_dict"]), preferred(["generator", "discriminator"])
    ('state_dict', None)
    """
    paths = list(paths)
    plain = [path for path in paths if not is_average(path)]
    if len(plain) == 1:
        return plain[0]
    for name in MODELS:
        fit = [path for path in plain if path.split(".")[-1] == name] or [
            path for path in plain if path.split(".")[0] == name
        ]
        if len(fit) == 1:
            return fit[0]
    return None


def is_called(path: str, container: str) -> bool:
    """Whether ``container`` is the name of a place, or of some of its parts that follow one another.

    >>> [is_called("state_dict.a.model", name) for name in ("model", "a.model", "odel", "state_dict.model")]
    [True, True, False, False]
    """
    return f".{container}." in f".{path}."


def is_average(path: str) -> bool:
    """Whether a name says that it is a moving average, or some other copy of the model.

    >>> is_average("state_dict_ema"), is_average("model"), is_average("averaged_model")
    (True, False, True)
    """
    words = path.lower().replace("_", ".").split(".")
    return any(word in AVERAGES for word in words)


def _refused(paths: list[str], container: str | None) -> str:
    asked = f"nothing in it is called {container!r}; " if container is not None else ""
    raise CheckpointError(
        f"{asked}it holds {len(paths)} state dicts, {', '.join(paths[:SHOWN])}; say which: "
        f"container={paths[0]!r}"
    )


def _listed(content: Mapping[Any, Any]) -> str:
    names = [f"{key} ({type(value).__name__})" for key, value in list(content.items())[:SHOWN]]
    more = f" and {len(content) - SHOWN} more" if len(content) > SHOWN else ""
    return ", ".join(names) + more


# -------------------------------------------------------------------------------------------- prefixes


def unwrapped(name: str) -> str:
    """A name without those of wrappers.

    >>> unwrapped("module._orig_mod.layer1._orig_mod.0.conv1.weight")
    'layer1.0.conv1.weight'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def without_prefix(
    names: Iterable[str], is_known: Callable[[Iterable[str]], bool], part: str | None = None
) -> tuple[dict[str, str], str, list[str]]:
    """The names of one network without what stands before them all: a dict new -> as in the file; the prefix;
    and other prefixes under which there are networks too. ``part`` is the prefix that is wanted.

    Names that are not the network's (of a loss, a metric) are not in the dict.

    Raises: CheckpointError if two names become one, or there are several networks and none is the model.
    """
    whole: dict[str, str] = {}
    for name in names:
        short = unwrapped(name)
        if short in whole:
            raise CheckpointError(f"{whole[short]} and {name} are two tensors with one name, {short}")
        whole[short] = name
    if part is not None:
        wanted = unwrapped(part).rstrip(".")
        inside = {n[len(wanted) + 1 :]: old for n, old in whole.items() if n.startswith(f"{wanted}.")}
        if not wanted or not inside:
            first = list(dict.fromkeys(name.split(".")[0] for name in whole))
            raise CheckpointError(
                f"nothing in it is called {part!r}: neither a container nor the first part of names; they "
                f"begin with {', '.join(first[:SHOWN])}"
            )
        deeper, prefix, others = without_prefix(inside, is_known)
        before = f"{wanted}.{prefix}".rstrip(".")
        return {new: inside[old] for new, old in deeper.items()}, before, others
    found = [] if is_known(whole) else list(_networks(whole, is_known))
    if not found:
        return whole, "", []
    prefixes = [prefix for prefix, _ in found]
    taken = prefixes[0] if len(found) == 1 else preferred(prefixes)
    if taken is None:
        _refused(prefixes, None)
    inner = dict(found)[taken or ""]
    return inner, taken or "", [prefix for prefix in prefixes if prefix != taken]


def _networks(
    names: Mapping[str, str], is_known: Callable[[Iterable[str]], bool]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Every prefix under which there is a network, and the names there."""
    rest: list[tuple[str, dict[str, str]]] = [("", dict(names))]
    while rest:
        prefix, node = rest.pop(0)
        groups: dict[str, dict[str, str]] = {}
        for name, old in node.items():
            first, dot, tail = name.partition(".")
            if dot:
                groups.setdefault(first, {})[tail] = old
        for first, inside in groups.items():
            path = f"{prefix}.{first}".removeprefix(".")
            if is_known(inside):
                yield path, inside
            elif path.count(".") < DEEPEST and not first.isdecimal():
                rest.append((path, inside))
