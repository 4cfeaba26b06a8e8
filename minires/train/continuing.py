"""What a run folder holds, nothing, a run that can go on, or a finished one; and how it goes on, in words."""

from __future__ import annotations

import os
import shlex
import stat
import warnings
from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from minires import data, files
from minires.errors import CheckpointError, ConfigError, MiniresError, counted
from minires.train import checkpoint as checkpoints
from minires.train import lock, run_folder, state
from minires.train.checkpoint import PATTERN, Checkpoints
from minires.train.config import Config
from minires.train.fields import shortened

CONFIG, METRICS, SUMMARY, MODEL = "config.json", "metrics.csv", "summary.json", "model.safetensors"
FINGERPRINT = "fingerprint.json"  # of the data, until there is a checkpoint, which holds it
# See minires.train.watched.
WATCH, PROGRESS, SAMPLES, LAYERS = WATCHED = "watch.json", "progress.json", "samples.png", "layers.csv"
PICTURES = ("curves.png", "confusion.png", "mistakes.png")
DAMAGED = "*.damaged*"
OWN = (CONFIG, FINGERPRINT, METRICS, SUMMARY, MODEL, PATTERN, DAMAGED, *PICTURES, *WATCHED)


def way_on(folder: str | os.PathLike[str]) -> str:
    """The command that goes on with the run in a folder.

    >>> way_on("runs/my hands")
    "minires train --resume 'runs/my hands'"
    """
    return f"minires train --resume {shlex.quote(str(folder))}"


def read_config(folder: str | os.PathLike[str]) -> Config:
    """The configuration of the run in a folder.

    Where the file is missing or empty, as after a power failure, that of the newest good checkpoint is used,
    and a warning says so. A run of a version that had no choice kept its last checkpoints.

    Raises: CheckpointError if there is none or it is no JSON object; ConfigError for what does not fit in it;
    both name the file.
    """
    path = Path(folder) / CONFIG
    content = None
    if not _has_config(path) and (found := _in_checkpoints(Path(folder))):
        content, checkpoint = found
        warnings.warn(f"{path} is missing or empty; using the configuration in {checkpoint}", stacklevel=2)
    if content is None:
        try:
            content = run_folder.read_json(path)
        except CheckpointError as error:
            if not _in_checkpoints(Path(folder)):
                raise
            way = "remove it, and the run has the configuration of its newest checkpoint"
            raise CheckpointError(f"{error}; {way}") from error
    content = {"keep": "last", **content}
    try:
        return Config.from_dict(content)
    except ConfigError as error:
        raise type(error)(f"{path}: {shortened(error)}") from error


def begin(folder: Path, config: Config, fingerprint: Mapping[str, Any]) -> None:
    """Write what a run has before its first checkpoint: its configuration, and what its data are known by."""
    run_folder.write_json(folder / CONFIG, config.to_dict())
    run_folder.write_json(folder / FINGERPRINT, fingerprint)


def begin_again(folder: Path, fingerprint: Mapping[str, Any], source: str) -> str:
    """Check that a run which has no checkpoint would begin on the same data; say that it begins.

    Raises: CheckpointError that names what is another now.
    """
    path = folder / FINGERPRINT
    try:
        held = run_folder.read_json(path)
    except CheckpointError as error:
        if os.path.lexists(path):  # else it was killed before it wrote that, or is of an older version
            warnings.warn(f"{error}; it is not known on which pictures the run began", stacklevel=2)
        run_folder.write_json(path, fingerprint)
    else:
        state.same_data(path, held, fingerprint, source)
    return "there is no checkpoint yet: the run begins with its first step"


def before(folder: Path) -> dict[str, Any]:
    """What the newest good checkpoint of a run says, or what the run began with; else nothing."""
    for path in reversed(Checkpoints(folder).paths()):
        with suppress(CheckpointError):
            return checkpoints.read(path)[1]
    with suppress(CheckpointError):
        return {"data": run_folder.read_json(folder / FINGERPRINT)}
    return {}


def has_begun(folder: Path) -> None:
    """Remove what is needed no more once there is a checkpoint."""
    with suppress(OSError):
        (folder / FINGERPRINT).unlink(missing_ok=True)


def undo(folder: Path) -> None:
    """Remove what :func:`begin` wrote."""
    has_begun(folder)
    for name in (CONFIG, *WATCHED):
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)


def write_config(folder: Path, config: Config) -> None:
    """Write the configuration of a run that goes on where it has none, or another choice of what is kept."""
    path = folder / CONFIG
    if not _has_config(path) or (before := read_config(folder)).keep != config.keep or (
        before.watch != config.watch
    ):
        run_folder.write_json(path, config.to_dict())


def _has_config(path: Path) -> bool:
    try:
        found = path.stat()
        return found.st_size > 0 or not stat.S_ISREG(found.st_mode)
    except FileNotFoundError:
        return False
    except OSError:  # whoever reads it says what is wrong
        return True


def _in_checkpoints(folder: Path) -> tuple[dict[str, Any], Path] | None:
    """The configuration in the newest good checkpoint, and which that is."""
    for path in reversed(Checkpoints(folder).paths()):
        with suppress(CheckpointError):
            _, info = checkpoints.read(path)
            if isinstance(content := info.get("config"), dict):
                return content, path
    return None


def check(folder: Any, *, resume: bool, held: bool = False) -> None:
    """Check that a run can begin in a folder, or go on there; ``held`` if we hold its lock.

    Raises: ConfigError if it holds a run already; CheckpointError that says why it cannot go on.
    """
    if not isinstance(folder, str | os.PathLike):
        if resume:
            raise ConfigError(f"a run is continued in its own folder; give its path, not {folder!r}")
    elif resume:
        _check_begun(Path(folder))
    elif held or lock.is_idle(folder) or not lock.holder(folder):  # else the lock says who trains there
        _check_new(Path(folder))


def not_among_pictures(folder: Path, name: str) -> None:
    """Check that the folder of a new run is not inside that of its pictures, the data set ``name``.

    Raises: ConfigError if it is.
    """
    pictures = Path(name)
    if name not in data.names() and pictures.is_dir() and folder.resolve().is_relative_to(pictures.resolve()):
        raise ConfigError(
            f"the run folder {folder} is inside that of the pictures, {name}, and what a run writes would be "
            f"taken for pictures; choose one elsewhere: out='{pictures.resolve().parent / 'runs' / 'mine'}'"
        )


def _check_new(folder: Path) -> None:
    held = _held(folder, *OWN)
    if not held:
        return
    what = "pictures of the names of a run's" if set(held) <= {*PICTURES, SAMPLES} else "a run"
    shown = f"{folder} holds {what} already ({', '.join(held[:3])}{', ...' if len(held) > 3 else ''})"
    if _is_finished(folder):
        raise ConfigError(f"{shown}, and it is finished; choose another folder")
    begun = [name for name in held if name not in WATCHED]
    if not Checkpoints(folder).paths() and begun not in ([CONFIG], [CONFIG, FINGERPRINT]):
        raise ConfigError(f"{shown}; choose another folder")
    raise ConfigError(
        f"{shown}; go on with it: {way_on(folder)} (in Python Trainer(None, folder, resume=True)), "
        "or choose another folder"
    )


def _check_begun(folder: Path) -> None:
    held = _held(folder, METRICS, SUMMARY, MODEL, DAMAGED, *PICTURES)
    if words := finished(folder):
        raise CheckpointError(words)
    if Checkpoints(folder).paths():
        return
    if not held:
        if not (folder / CONFIG).is_file():
            raise CheckpointError(f"{folder} holds no run to continue; start one without resume=True")
        return  # it was stopped before its first checkpoint, and begins
    if damaged := _held(folder, DAMAGED):
        raise CheckpointError(
            f"{folder} has no checkpoint but a damaged one ({damaged[-1]}), and nothing was changed; "
            "put a good copy in its place, or start again in another folder"
        )
    raise CheckpointError(
        f"{folder} has no checkpoint to go on from, only {', '.join(held)}, and nothing was changed; "
        "start again in another folder"
    )


def hold_again(held: lock.Lock | None, left: dict[str, tuple[int, int]], unclear: str | None) -> None:
    """Hold the folder of a Trainer that runs once more: the end of a run lets it go. ``left`` is what it left
    there (see :func:`remains`), ``unclear`` why it cannot run. Its lock is busy then; only rank 0 has one.

    Raises: MiniresError if it cannot, or the folder is not as it was left; Held if somebody trains there.
    """
    if held is None:
        return
    if not unclear and not held.held:
        if lock.is_idle(held.folder):
            unclear = "another Trainer has taken it over"
        else:
            held.again()
            if remains(held.folder) != left:
                held.release()
                unclear = "somebody else has trained there meanwhile, or changed something"
    if unclear:
        raise MiniresError(
            f"this Trainer no longer holds {held.given}: {unclear}; make a new one with resume=True"
        )
    held.busy = True


def stopped(error: MiniresError, folder: Path, step: int) -> MiniresError:
    """The error of a file that could not be written, which ends a run, with how to go on."""
    if isinstance(error, lock.Lost):
        return error
    there = Checkpoints(folder).paths()
    kept = f"{there[-1].name} is kept" if there else "there was no checkpoint yet"
    return MiniresError(
        f"{error}. The run is stopped at step {step}; {kept}. Mend that, then go on with: {way_on(folder)}"
    )


def ready(given: Path, folder: Path, *, resume: bool) -> None:
    """See once more, when its lock is held, that a run can begin in a folder, or go on there; what writes
    that were killed have left is removed. Raises: as :func:`check`."""
    check(given, resume=resume, held=True)
    remove_leftovers(folder)


def other_sums(info: Mapping[str, Any], *, threads: int, ranks: int) -> list[str]:
    """A warning where a run goes on with other threads or processes than those of the checkpoint that says
    ``info``."""
    last = "sums are rounded in another order, so the last bits may differ"
    found = []
    before = info.get("ranks") or 1
    if info["threads"] != threads and before == ranks:
        found.append(f"the run used {info['threads']} threads and continues with {threads}: {last}")
    if before != ranks:
        found.append(
            f"the run was of {counted(before, 'process', 'processes')} and goes on with {ranks}: {last}, and "
            "with batch_norm='local' batch norms see other parts of each batch"
        )
    return found


def remove_leftovers(folder: Path) -> None:
    """Remove what writes that were killed have left; only for who holds the lock of the folder."""
    files.remove_leftovers(
        folder, CONFIG, FINGERPRINT, METRICS, SUMMARY, MODEL, PATTERN, *PICTURES, *WATCHED
    )


def not_yet(folder: Path) -> str | None:
    """Why there is neither a model nor a checkpoint in a folder, and what to do; None if it is the folder of
    no run."""
    if who := lock.holder(folder):
        return f"{folder} is being trained by {who}, and has no checkpoint yet; try again a little later"
    if _held(folder, CONFIG) and not _held(folder, SUMMARY):
        way = way_on(folder)
        return f"the run in {folder} was stopped before its first checkpoint; go on with it: {way}"
    return None


def finished(folder: str | os.PathLike[str]) -> str | None:
    """That the run in a folder is finished, and nothing of it is left to do, in words; else None.

    Checkpoints that are there, because they were to be kept or somebody has put them there, stay.
    """
    folder = Path(folder)
    if not _is_finished(folder):
        return None
    count = len(Checkpoints(folder).paths())
    kept = f"; it needs its {count} checkpoint{'s' * (count > 1)} no more" if count else ""
    model = folder / MODEL
    return f"the run in {folder} is finished: there is nothing to go on with; its model is {model}{kept}"


def remains(folder: Path) -> dict[str, tuple[int, int]]:
    """By what it is seen whether somebody else has trained in a folder meanwhile."""
    found = {}
    for name in _held(folder, CONFIG, SUMMARY, MODEL, PATTERN):
        with suppress(OSError):
            status = (folder / name).stat()
            found[name] = (status.st_mtime_ns, status.st_size)
    return found


def files_of(model: str | os.PathLike[str]) -> list[Path]:
    """The files of a trained model, which is a file or the folder of a run."""
    path = Path(model)
    return [path / name for name in _held(path, *OWN)] if path.is_dir() else [path]


def not_in_run(option: str, path: str | os.PathLike[str]) -> None:
    """Check that a file to be written is none of a run, there already or still to come.

    Raises: ConfigError if it has the name of one, in the folder of a run.
    """
    path = Path(path)
    # Where large and small letters are the same, Model.safetensors is one, too.
    named = any(fnmatchcase(path.name.lower(), pattern) for pattern in OWN)
    if named and _is_run(path.parent):
        raise ConfigError(f"{path} is a file of the run in {path.parent}: {option} must be another file")


def _is_run(folder: Path) -> bool:
    """Whether a run began in a folder; others have a config.json, too."""
    if _is_finished(folder) or Checkpoints(folder).paths():
        return True
    try:
        Config.from_dict(run_folder.read_json(folder / CONFIG))
        return True
    except MiniresError:
        return False


def _is_finished(folder: Path) -> bool:
    if not _held(folder, MODEL) or not _held(folder, SUMMARY):
        return False
    try:
        return run_folder.read_json(folder / SUMMARY).get("test_accuracy") is not None
    except CheckpointError:
        return False


def _held(folder: Path, *patterns: str) -> list[str]:
    return [path.name for pattern in patterns for path in sorted(folder.glob(pattern))]
