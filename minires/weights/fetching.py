"""A known file of weights, downloaded or brought, checked, and made a model of ours.

taken = fetch("resnet20_cifar-akamaster")
taken = take("resnet20_cifar-akamaster", "Downloads/resnet20-12fca82f.th")
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from minires import download
from minires.data import cache
from minires.data.fetch import make_folder
from minires.errors import CheckpointError, ConfigError
from minires.files import atomic_write, not_there
from minires.limits import regular_file
from minires.weights.known import KNOWN, Known, by_hand, place_of
from minires.weights.pretrained import import_weights
from minires.weights.report import Report

MOST = 2**30  # bytes of a file whose size is not published
ROOM = 2**20  # bytes by which a file may be larger than published, as MiB are rounded


@dataclass(frozen=True)
class Taken:
    """A known file that is a model of ours at ``path`` now; ``sha256`` is that of the file, and ``report``
    what was read from it: both None where the model was here already."""

    path: Path
    sha256: str | None = None
    report: Report | None = None


def fetch(
    name: str,
    out: str | os.PathLike[str] | None = None,
    *,
    classes: Sequence[str] | None = None,
    timeout: float = download.TIMEOUT,
) -> Taken:
    """Download a known file into the user's cache, check it, and write it as a model of ours to ``out``.

    Without ``out`` the model comes into the cache, and what was downloaded goes. ``classes`` are as in
    :func:`minires.weights.import_weights`.

    Raises: ConfigError for an unknown name, a file that is part of this package, or one that needs PyTorch
    where that is not installed, before anything is fetched; DataError when the network cannot be reached or
    not all came; CheckpointError when what came is not the known file; nothing is left behind then.
    """
    one = KNOWN.find(name)
    if one.packaged:
        raise ConfigError(f"{name} is part of this package, and need not be fetched: {place_of(name)}")
    here = place_of(name)
    if out is not None:
        not_there("out", out)
    if here.is_file() and classes is None:
        if out is not None:
            with atomic_write(out) as file, open(here, "rb") as model:
                shutil.copyfileobj(model, file)
        return Taken(Path(here if out is None else out))
    if one.file.endswith((".pth", ".th")) and importlib.util.find_spec("torch") is None:
        raise ConfigError(
            f"{one.file} was written by PyTorch, and reading it needs PyTorch: pip install torch; nothing "
            "was fetched"
        )
    kept = cache() / "weights" / one.file
    make_folder(kept.parent)
    if not (kept.is_file() and _fits(one, _digest_at(kept))):  # one may be left of an import that failed
        most = MOST if one.mib is None else int(one.mib * 2**20) + ROOM
        digest = hashlib.sha256()
        with atomic_write(kept) as file:

            def write(piece: bytes) -> None:
                digest.update(piece)
                file.write(piece)

            download.fetch(
                one.url, write, name=one.file, most=most, what=one.file, instead=by_hand(name),
                timeout=timeout,
            )  # fmt: skip
            _check(one, digest.hexdigest(), one.url)
    taken = take(name, kept, out, classes=classes)
    with suppress(OSError):
        kept.unlink()
    return taken


def take(
    name: str,
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    classes: Sequence[str] | None = None,
) -> Taken:
    """Check that the file at ``path`` is a known one, whatever its name, and write it as a model of ours to
    ``out``, or into the user's cache. It stays as it is.

    Raises: ConfigError for an unknown name, or one of a file that is part of this package; CheckpointError
    if it is another file; what :func:`minires.weights.import_weights` raises.
    """
    one = KNOWN.find(name)
    digest = check(name, path)
    here = place_of(name)
    if out is not None:
        not_there("out", out)
    else:
        make_folder(here.parent)
    report = import_weights(
        path, one.model, here if out is None else out, source=one.source, classes=classes,
        variant=one.variant,
    )  # fmt: skip
    return Taken(Path(here if out is None else out), digest, report)


def check(name: str, path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, once it is clear that it is that of the known file ``name``.

    Raises: ConfigError for an unknown name, or one of a file that is part of this package; CheckpointError
    if it is another file.
    """
    one = KNOWN.find(name)
    if one.packaged:
        raise ConfigError(f"{name} is part of this package, and holds its own checksum: {place_of(name)}")
    regular_file(path, CheckpointError)
    digest = _digest_at(path)
    _check(one, digest, os.fspath(path))
    return digest


def _digest_at(path: str | os.PathLike[str]) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{os.fspath(path)} cannot be read: {error.strerror}") from error


def _fits(one: Known, digest: str) -> bool:
    return digest.startswith(one.sha256)


def _check(one: Known, digest: str, where: str) -> None:
    if _fits(one, digest):
        return
    raise CheckpointError(
        f"{where} is not {one.file}, or not all of it: its SHA-256 begins with {digest[:16]}, and that of "
        f"the known file with {one.sha256[:16]}"
    )
