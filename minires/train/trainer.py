"""The Trainer: runs a configuration from the first step to the last figure, and survives what comes between.

Everything random follows from the seed and the place in the run (the pictures and their augmentation) or is
saved (dropout), so a run that was killed at any moment and continued gives the same bits as one that was not.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path
from typing import Any, Never

import numpy as np

from minires import backend, data, optim
from minires.data.loader import Batches, Pair
from minires.distributed import Communicator, devices, shares, world
from minires.errors import ConfigError, MiniresError
from minires.interrupt import Interrupted, status
from minires.nn.module import Module
from minires.nn.restored import modes
from minires.train import (
    audience,
    balance,
    best,
    captured,
    checks,
    continuing,
    ending,
    planned,
    preparing,
    report,
    run_folder,
    state,
    steps,
    team,
)
from minires.train.checkpoint import Checkpoints
from minires.train.config import Config
from minires.train.ema import EMA
from minires.train.evaluation import Evaluation, evaluate, recalibrated
from minires.train.figures import Figures
from minires.train.observers import Observer, Observers
from minires.train.schedules import Schedule
from minires.train.shared import FILE
from minires.train.state import Progress
from minires.train.stopping import Wish, in_words
from minires.train.telling import Listener, lines_of_epochs, under_way


class Trainer:
    """Trains what ``config`` says and leaves everything in the folder ``out``; of several folders, an
    iterable, in the first that is not there yet.

    ``config`` may be None when ``resume`` is set: the run's own ``config.json`` is used. ``splits`` replaces
    the data set that the configuration names, ``model`` the model it would build: each epoch trains all
    of it but what ``freeze`` names, and leaves each module in its own mode. ``progress`` shows a bar,
    None only on a terminal and in a notebook, where the curves are shown, too; elsewhere a line says now and
    then how far it is. ``say`` gets each line of the report. ``observers`` hear how the run goes, see
    :class:`~minires.train.Observer`. Without ``figures`` no files of curves and of what the test shows are
    drawn, which takes longer than a very small run itself; those of an earlier part of the run stay.

    The folder is held by a lock until the run ends: nobody else trains there meanwhile. What fails before
    the first step leaves no folder.

    Under a launcher of MPI (``mpirun -n 4 python script.py``) the processes do one run together: ``comm`` are
    these, unless others are given; ``Solo()`` makes a run of each by itself. Each process goes through its
    share of every batch, with the device "cuda" on a GPU of its own; rank 0 writes and says all there is, and
    its observers alone hear of the run.

    Raises: ConfigError if ``out`` holds a run already and ``resume`` is not set, or for anything in the
    configuration that does not fit; CheckpointError if the run in ``out`` is another one, is finished, or all
    its checkpoints are damaged; DataError if the data set cannot be read; Held (a MiniresError) if somebody
    trains in ``out`` now.
    """

    def __init__(
        self,
        config: Config | Mapping[str, Any] | None,
        out: str | os.PathLike[str] | Iterable[Path],
        *,
        splits: data.Splits | None = None,
        model: Module | None = None,
        resume: bool = False,
        progress: bool | None = None,
        say: Callable[[str], None] = print,
        observers: Iterable[Observer] = (),
        comm: Communicator | None = None,
        figures: bool = True,
    ) -> None:
        self.comm = comm = comm or world()
        # That nobody is there to hear it ends no run.
        self._listener = Listener(say if comm.is_first else lambda line: None)
        self.said: Iterable[str] = self._listener.said
        self._show, self._bar = progress if comm.is_first else False, None  # the bar, while it is shown
        hear = observers if comm.is_first else ()
        self._observers = Observers(hear, lambda line: self.say(f"warning: {line}"))
        if config is None and not resume:
            raise ConfigError("a new run needs a configuration, for example Config.of('default')")
        # The lock of the folder, its full path, and the folder as it was named.
        self._lock, self.out, self.given = team.hold(comm, out, resume=resume)
        self._is_new = False  # whether all that stands in the folder is what a run begins with
        self._unclear: str | None = None  # why this Trainer cannot run again
        try:
            self._first(lambda: continuing.ready(self.given, self.out, resume=resume))
            self.config = team.one_config(comm, config, self.out)
            self.device = devices.chosen(comm, self.config.device)
            held = self._first(lambda: continuing.before(self.out)) if resume else {}
            begun = resume and self._first(lambda: bool(Checkpoints(self.out).paths()))
            with comm.patiently(), comm.together("preparations"):
                self._prepare(splits, model, resume, held, begun, figures)
            self._known = functools.cache(lambda mended: state.fingerprint(self.splits, without=mended))
            team.one_set(comm, self.splits)
            team.one_model(comm, self.model)
            self._make_steps()
            if comm.is_first:
                self._observers.add(*audience.observers(self.config, self._show))
            if resume:
                if not team.latest(comm, self.checkpoints, self._take):
                    self.say(self._first(lambda: continuing.begin_again(
                        self.out, self._fingerprint, self.splits.source
                    )))  # fmt: skip
                if self.config.keep == "best":
                    self._first(lambda: best.check(self.checkpoints, self.history))
                self._first(lambda: continuing.write_config(self.out, self.config))
            else:
                self._is_new = True
                self._first(lambda: continuing.begin(self.out, self.config, self._fingerprint))
            if self._lock is not None:
                self._lock.keep()
                self._left = continuing.remains(self.out)
        except BaseException:
            self._let_go()
            raise

    def _first(self, work: Callable[[], Any]) -> Any:
        """What the ranks have rank 0 do alone, in the folder of the run: its result, or its error."""
        return self.comm.first(work, "run folder")

    def _prepare(
        self, splits: data.Splits | None, model: Module | None, resume: bool, held: Mapping[str, Any],
        begun: bool, figures: bool,
    ) -> None:  # fmt: skip
        """Pictures, model, optimiser, schedule: all that follows from the configuration. ``held`` is what the
        last checkpoint says, ``begun`` whether there is one, and ``figures`` whether they are drawn."""
        config, comm = self.config, self.comm
        # What the names stand for is looked up before pictures are read or rendered, which takes long.
        optim.checked(config.optimizer)
        Schedule(config.schedule, lr=1.0, total_steps=1)
        if not resume:
            continuing.not_among_pictures(self.given, config.data)
        self._mended = state.mended(held)
        size = state.size(config) if model is None else config.size
        share = None if comm.size == 1 else lambda count: shares(self._parts(count), comm.rank, comm.size)
        shown = preparing.pictures(config, splits, size=size, held=held, share=share)
        self.splits, self.train_set, self.val_set = shown.splits, shown.train_set, shown.val_set
        self.normalize, self.loader = shown.loader.normalize, shown.loader
        checks.ranks(self.loader, self._parts, comm.size)

        self.model, self.variant = preparing.network(
            config, model, device=self.device, classes=self.train_set.classes, size=size, begun=begun,
            say=self.say,
        )  # fmt: skip
        self.activations = backend.activations(config.precision)
        apart = 1 if config.batch_norm == "sync" else comm.size
        checks.batches_of_one(
            self.model, self.loader, activations=self.activations, accumulate=config.accumulate, ranks=apart
        )
        self.optimizer = optim.build(config.optimizer, self.model.named_parameters())
        total = config.epochs * len(self.loader)
        self.schedule = Schedule(config.schedule, lr=self.optimizer.lr, total_steps=total)
        self.ema = EMA(self.model, config.ema) if config.ema else None
        self._loss = balance.loss(config.balance, self.train_set, label_smoothing=config.label_smoothing)

        self.progress = Progress()
        self.history: list[dict[str, Any]] = []
        self.warnings: list[str] = []  # what makes the result doubtful: see minires.train.checks
        self.checkpoints = Checkpoints(self.out, all=config.keep == "all")
        self._best: Mapping[str, Any] | None = None  # what the checkpoint of the best epoch holds, once read
        self._figures = Figures(self.out, config, self.train_set.name, self._warn, draws=figures)
        self._since = time.perf_counter()

    def _parts(self, pictures: int) -> list[int]:
        """The parts in which so many pictures go through the model, those of all ranks together."""
        return steps.parts(pictures, self.config.batch_size, self.config.accumulate)

    def _make_steps(self) -> None:
        config, model, comm = self.config, self.model, self.comm
        sync = config.batch_norm == "sync" and comm.size > 1
        self._forward = planned.of_run(model, config, batches=len(self.loader), comm=comm)
        shared = team.shared(comm, model, self.optimizer, self.device, self.say)
        capture = captured.of_run(
            model, self.optimizer, self._loss, self.say, device=self.device, whole=config.accumulate == 1,
            gradients=None if shared is None else shared.gradients, sync=sync,
        )  # fmt: skip
        self._steps = steps.Steps(
            model, self.optimizer, self._forward, self._loss, self._stop_not_finite, device=self.device,
            activations=self.activations, ema=self.ema, capture=capture, parts=self._parts,
            shared=shared, sync=sync, wish=lambda: self._wish.told(), heard=self.schedule.stepped,
        )  # fmt: skip
        self._wish = Wish(self.out, silent=True)
        self._forward.ready = self._steps.complete

    # ------------------------------------------------------------------------------------------ the run

    def run(self) -> dict[str, Any]:
        """Train to the end, test, and write the figures; return what ``summary.json`` holds.

        After that, or after Interrupted, it can be called again: it tests once more, or goes on.

        Raises: Interrupted after SIGINT, SIGTERM or SIGHUP, once the state is saved; MiniresError that names
        the first layer whose output or gradient was not finite; MiniresError if a checkpoint or the model
        cannot be written: the checkpoint before it stays, and the run goes on from there; MiniresError that
        names pictures of a stream which cannot be read: the run is saved, and goes on when they are mended.
        """
        self._first(lambda: continuing.hold_again(self._lock, self._left, self._unclear))
        backend.make_current(self.device)
        self._unclear = "its last step has not come to its end"
        try:
            summary = self._run()
            self._unclear = None
            return summary
        except data.Unreadable as error:
            if self.progress.step:  # else nothing was begun
                self._mended = self._mended.union(*self.comm.exchange([*error.names], "pictures"))
                self.save()
                self._unclear = None
            raise continuing.stopped(error, self.given, self.progress.step) from error
        except KeyboardInterrupt as stop:
            there = self.checkpoints.paths() if self._lock is not None else []
            if isinstance(stop, Interrupted):
                self._unclear = None
            if isinstance(stop, Interrupted) or not there or (self._lock is not None and self._lock.lost):
                raise
            raise Interrupted(f"interrupted; {there[-1]} is kept", status(stop) - 128) from stop
        finally:
            self._bar = None
            self._steps.close()
            self._let_go()
            if self._lock is not None:
                self._left = continuing.remains(self.out)
                self._lock.busy = False

    def _run(self) -> dict[str, Any]:
        config = self.config
        for line in report.begins(config, self.splits, self.train_set, self.val_set, self.given):
            self.say(line)
        if config.normalize == "data":
            self._warn(checks.constant_channels(self.normalize))
        if words := balance.words(config.balance, self.train_set):
            self.say(words)
        if self._is_done():
            self.say(f"all {self.progress.step} steps are done; testing again")
        elif self.progress.step:
            self.say(f"continuing after step {self.progress.step}, in epoch {self.progress.epoch + 1}")
        for line in report.batches(config, self.train_set, self.comm, self.given):
            self.say(line)
        per_epoch = len(self.train_set) - report.left_out(config, self.train_set)
        with Wish(self.out, silent=not self.comm.is_first) as self._wish, audience.bar(
            self._show,
            total=config.epochs * per_epoch, initial=self.progress.epoch * per_epoch + self.progress.pictures,
            unit=" pictures",
            bar_format="{desc} {percentage:3.0f}%|{bar}| {rate_fmt}, {remaining} left{postfix}",
        ) as bar, backend.before_compiling(self.say), \
                backend.precision(config.precision):  # fmt: skip
            self._bar = bar
            self._observers.tell("begins", self)
            self._since, self._forward.say = time.perf_counter(), self.say
            while not self._is_done():
                self._epoch(bar)
            self._leave_if_told()
        self._bar = None
        if why := self._stopped_early():
            self.say(f"stopped after epoch {self.progress.epoch} of {config.epochs}: {why}")
        return self._finish()

    def _epoch(self, bar: Any) -> None:
        """Train for one epoch, or the rest of one, then validate, report and save."""
        config, progress = self.config, self.progress
        bar.set_description_str(f"epoch {progress.epoch + 1}/{config.epochs}")
        batches = self.loader.epoch(progress.epoch, progress.batch)
        with modes(self.model, training=True), closing(batches):
            for x, y in self._had(batches):
                pictures = self.loader.pictures(progress.batch)
                self._step(x, y)
                progress.epoch_seconds += self._tick()
                bar.set_postfix_str(under_way(progress), refresh=False)
                bar.update(pictures)
                if self._observers:
                    self._observers.tell("stepped", self)
                    self._tick()  # their time is the run's, but not that of training
                last = progress.batch == len(self.loader)
                if last:
                    self._steps.settle()
                if self.comm.size == 1:
                    self._leave_if_told()
                elif self._steps.stop:
                    self._leave(self._steps.stop)
                if config.checkpoint_every and progress.step % config.checkpoint_every == 0 and not last:
                    self.save()
        self.comm.watch(False)
        val = self._validated()
        self._tick()
        row = self.progress.row(self.optimizer.lr, len(self.loader), val)
        self.history.append(row)
        self.schedule.epoch_end(row["train_loss"] if val is None else val.loss)
        for told in lines_of_epochs(
            self.history, config.epochs, last=best.spent(self.history, config.patience) is not None
        ):
            self.say(run_folder.epoch_line(told, config.epochs))
        if not any(text.startswith("after epoch") for text in self.warnings):  # once is enough
            averages = {f"average of {path}": a for path, a in self.ema.averages.items()} if self.ema else {}
            after, numbers = f"after epoch {row['epoch']}", checks.numbers(self.model)
            self._warn(checks.not_finite(after, {**numbers, **averages}))
        self.progress = progress.next_epoch()
        self.save()
        self._write_history()
        self._observers.tell("epoch_ended", self, row, val)
        self._leave_if_told()

    def _had(self, batches: Batches) -> Iterator[Pair]:
        """The batches, one after the other; where one cannot be had all ranks stop."""
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches, None)
            except data.Unreadable as error:
                self._steps.fail(error)
            self.comm.spent("data", time.perf_counter() - began)
            if batch is None:
                return
            self.comm.watch(True)
            yield batch

    def _leave_if_told(self) -> None:
        """Stop where any rank was told to."""
        with self.comm.patiently():  # for an observer of rank 0
            told = self.comm.exchange(self._wish.told(), "stop")
        if found := [number for number in told if number]:
            self._leave(found[0])

    def _validated(self) -> Evaluation | None:
        """What the validation pictures say of the weights as they are now, averaged where they are."""
        if self.val_set is None:
            return None
        model, images = self.model, self.train_set.images
        anew: Any = nullcontext()
        if self.config.recalibrate:
            anew = recalibrated(model, images, self.normalize, self.comm)
        with self.ema.swap() if self.ema else nullcontext(), anew:
            return evaluate(model, self.val_set, self.normalize, comm=self.comm)

    def _is_done(self) -> bool:
        """Whether all epochs are done, or it is of no use to wait for a better one."""
        return self.progress.epoch == self.config.epochs or self._stopped_early() is not None

    def _stopped_early(self) -> str | None:
        """Why the run does not go through all of its epochs, in words; None if it does."""
        all_done = self.progress.epoch == self.config.epochs
        return None if all_done else best.spent(self.history, self.config.patience)

    def say(self, line: str) -> None:
        """Say a line of the report, beside the bar while that is shown."""
        with self._bar.external_write_mode() if self._bar is not None else nullcontext():
            self._listener(line)

    def _warn(self, found: Iterable[str]) -> None:
        """Say what was found, and keep it for the summary."""
        for text in found:
            if text not in self.warnings:
                self.warnings.append(text)
                self.say(f"warning: {text}")

    def _tick(self) -> float:
        """Add the time since the last call to the run's; return it."""
        before, self._since = self._since, time.perf_counter()
        self.progress.seconds += self._since - before
        return self._since - before

    def _step(self, x: np.ndarray, y: np.ndarray) -> None:
        """One step of the optimiser; nothing is changed if its loss or gradient is not finite."""
        pictures = self.loader.pictures(self.progress.batch)
        self._steps(x, y, self.progress, self.schedule.lr(self.progress.step), pictures)

    def _stop_not_finite(self, what: str, step: int, first: str) -> Never:
        why, diverged = ending.lost(what, ending.place(self.progress, step), first)
        self.warnings.append(why)
        self._tick()
        self._figures.drawn = -math.inf
        self._write_history()
        with suppress(MiniresError):  # what has happened is the more important news
            summary = self._write_summary(diverged)
            self._observers.tell("ends", self, summary)
        raise MiniresError(self.warnings[-1])

    # ---------------------------------------------------------------------------------------- the state

    def save(self) -> Path:
        """Write a checkpoint of the run as it stands.

        Raises: MiniresError if it cannot be written; the one before it stays.
        """
        self._steps.settle()
        team.may_save(self.comm, self._observers.at_work)
        team.alike(self.comm, self.model, self.progress.step)
        self._is_new = False
        name: str = self._first(self._write_checkpoint)
        self._tick()  # saving is time of the run, but not of training
        return self.out / name

    def _write_checkpoint(self) -> str:
        groups, info = ending.checkpoint(self, fingerprint=self._fingerprint)
        try:
            keep = best.steps_to_keep(self.history) if self.config.keep == "best" else ()
            path = self.checkpoints.save(self.progress.step, groups, info, keep=keep)
            continuing.has_begun(self.out)
        except MiniresError as error:
            raise continuing.stopped(error, self.given, self.progress.step) from error
        return path.name

    @property
    def _fingerprint(self) -> dict[str, Any]:
        """What the data are known by."""
        return self._known(self._mended)

    def _take(self, path: Path, groups: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        """Continue from what a checkpoint holds."""
        self._mended = state.mended(info)
        if self.comm.is_first:
            self._check_belongs(path, info)
        state.load(
            path, groups, info, model=self.model, optimizer=self.optimizer, ema=self.ema,
            schedule=self.schedule,
        )  # fmt: skip
        for line in continuing.other_sums(info, threads=backend.threads(), ranks=self.comm.size):
            if self.comm.is_first:
                warnings.warn(line, stacklevel=5)
        self.history = info["history"]
        self.warnings = info.get("warnings") or []
        self.progress = Progress(**{f.name: info["progress"][f.name] for f in dataclasses.fields(Progress)})

    def _check_belongs(self, path: Path, info: Mapping[str, Any]) -> None:
        here = self.splits, self.train_set, self._fingerprint, len(self.loader)
        state.belongs(path, info, self.config, *here)

    def _kept(self) -> AbstractContextManager[None]:
        """A block in which the model has the weights that are kept: averaged ones where there are such, of
        the last epoch or of the best. Raises: CheckpointError if those of the best cannot be read."""
        row = best.best(self.history) if self.config.keep == "best" else None
        if row is None or row["epoch"] == len(self.history):
            return self.ema.swap() if self.ema else nullcontext()
        if self._best is None:  # a run that is tested once more has no checkpoints
            self._best = team.of_first(
                self.comm, lambda: best.weights_of(row, self.checkpoints, self._check_belongs)
            )
        return best.weights(self.model, self.ema, self._best)

    def _let_go(self) -> None:
        """Let the folder go; a run that made no step leaves it as it was before."""
        if self._lock is None:
            return
        if self._is_new and self.progress.step == 0 and self._lock.held and not self._lock.lost:
            continuing.undo(self.out)
        self._lock.remove_folder()  # what is not empty stays

    def _leave(self, number: int) -> None:
        """Stop, as the signal with this number asks, or the file STOP."""
        saved = self.given / self.save().name
        self._write_history()
        self._wish.done()
        raise Interrupted(
            f"stopped after step {self.progress.step}{in_words(number)}; everything is saved in {saved}",
            signal.SIGINT if number == FILE else number,
        )

    # -------------------------------------------------------------------------------------- the figures

    def _write_history(self) -> None:
        self._first(lambda: self._figures.history(self.history, last=self._is_done()))

    def _finish(self) -> dict[str, Any]:
        """Test the weights that are kept, and write them, then all figures, then the summary; only when that
        is on the disk the checkpoints go."""
        if self.config.keep == "best" and (row := best.best(self.history)):
            self.say(f"the weights of epoch {row['epoch']}, the best by validation, are tested and kept")
        tested = ending.test(self, self._kept())
        self._tick()
        self._first(lambda: self._figures.last(self.splits.test, tested.test.probabilities))
        self._write_history()
        self._warn(ending.doubts(self, tested))
        try:
            summary = self._write_summary(ending.diverged(self, tested), tested)
        except MiniresError as error:
            raise continuing.stopped(error, self.given, self.progress.step) from error
        if self.config.keep in ("none", "best") and self._lock is not None and not self._lock.lost:
            self.checkpoints.remove()
        self.say(ending.result(self, tested))
        self._observers.tell("ends", self, summary)
        return summary

    def _write_summary(self, diverged: bool, tested: ending.Tested | None = None) -> dict[str, Any]:
        self._is_new = False
        early = self._stopped_early()
        summary: dict[str, Any] = self._first(
            lambda: ending.summary(self, diverged=diverged, tested=tested, stopped_early=early)
        )
        return summary
