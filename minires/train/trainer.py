"""The Trainer: runs a configuration from the first step to the last figure, and survives what comes between.

Everything random follows from the seed and the place in the run (the pictures and their augmentation) or is
saved (dropout), so a run that was killed at any moment and continued gives the same bits as one that was not.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minires import backend, data, models, optim
from minires.errors import CheckpointError, ConfigError, MiniresError
from minires.nn.module import Module
from minires.nn.restored import modes
from minires.ops.cross_entropy import cross_entropy
from minires.tensor import Tensor
from minires.train import captured, checks, finetune, model_file, planned, report, run_folder
from minires.train.checkpoint import Checkpoints, differences
from minires.train.config import Config
from minires.train.diagnose import first_not_finite
from minires.train.ema import EMA
from minires.train.evaluation import Evaluation, evaluate, recalibrate
from minires.train.interrupt import Interrupted, StopWish
from minires.train.schedules import Schedule

# Settings that may change when a run is continued.
FREE = ("device", "plan", "checkpoint_every")
RUN_FILES = ("config.json", "metrics.csv", "summary.json", model_file.NAME, "checkpoint-*.safetensors")
REDRAW = 30.0  # seconds between two drawings of the curves


@dataclass
class Progress:
    """The place in the run, and what was summed up in the epoch that is under way."""

    epoch: int = 0
    batch: int = 0  # the next one of this epoch
    step: int = 0
    seconds: float = 0.0  # of the whole run, validation included
    epoch_seconds: float = 0.0  # of training in this epoch
    pictures: int = 0
    loss: float = 0.0  # summed over pictures
    right: int = 0
    norm: float = 0.0  # summed over steps

    def next_epoch(self) -> Progress:
        return Progress(epoch=self.epoch + 1, step=self.step, seconds=self.seconds)


class Trainer:
    """Trains what ``config`` says and leaves everything in the folder ``out``.

    ``config`` may be None when ``resume`` is set: the run's own ``config.json`` is used. ``splits`` replaces
    the data set that the configuration names, ``model`` the model it would build: each epoch trains all
    of it but what ``freeze`` names, and leaves each module in its own mode. ``progress`` shows a bar,
    None only on a terminal; ``say`` gets each line of the report.

    Raises: ConfigError if ``out`` holds a run already and ``resume`` is not set, or for anything in the
    configuration that does not fit; CheckpointError if the run in ``out`` is another one or all its
    checkpoints are damaged; DataError if the data set cannot be read.
    """

    def __init__(
        self,
        config: Config | Mapping[str, Any] | None,
        out: str | Path,
        *,
        splits: data.Splits | None = None,
        model: Module | None = None,
        resume: bool = False,
        progress: bool | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.out, self.say, self._show = Path(out), say, progress
        self._check_folder(resume)
        if config is None:
            if not resume:
                raise ConfigError("a new run needs a configuration, for example Config.of('default')")
            config = run_folder.read_json(self.out / "config.json")
        self.config = config = config if isinstance(config, Config) else Config.from_dict(config)

        # What the names stand for is looked up before pictures are read or rendered, which takes long.
        optim.checked(config.optimizer)
        Schedule(config.schedule, lr=1.0, total_steps=1)
        augment = data.build(config.augment)
        if model is None:
            models.entry(config.model)
        size = config.size or (models.entry(config.model).size if model is None else None)
        self.splits = splits or data.load(config.data, size=size)
        self.train_set = self.splits.train
        if config.train_on == "train+val":
            self.train_set = self.train_set.join(self.splits.val)
        self.val_set = self.splits.val if config.train_on == "train" else None
        self.normalize = self._normalization()
        self.loader = data.Loader(
            self.train_set, config.batch_size, seed=config.seed, normalize=self.normalize,
            augment=augment, drop_last=config.drop_last,
        )  # fmt: skip

        self.variant = dict(config.variant)
        if model is None:
            if size is not None:
                self.variant = {**models.entry(config.model).fitted(size), **self.variant}
            classes = len(self.train_set.classes)
            model = models.build(config.model, classes=classes, seed=config.seed, **self.variant)
        if config.start_from and not resume:
            new = finetune.start_from(model, config.start_from, classes=self.train_set.classes)
            say(f"starting from {config.start_from}; new: {', '.join(new) or 'nothing'}")
        finetune.freeze(model, config.freeze)
        self.device = backend.choose_device(config.device)
        if config.precision == "tf32" and self.device == "cpu":
            raise ConfigError("precision='tf32' is for GPUs; on the CPU leave it at precision='fp32'")
        if config.precision == "bf16" and self.device == "cpu":
            say("precision 'bf16' is slower than 'fp32' on the CPU, and only for checking its accuracy there")
        self.activations = backend.activations(config.precision)
        self.model = model.to(self.device)
        checks.batches_of_one(self.model, self.loader, activations=self.activations)
        self.optimizer = optim.build(config.optimizer, model.named_parameters())
        total = config.epochs * len(self.loader)
        self.schedule = Schedule(config.schedule, lr=self.optimizer.lr, total_steps=total)
        self.ema = EMA(model, config.ema) if config.ema else None
        self._forward = planned.Forward(model, total if config.plan else 0, config.batch_size)

        self.progress = Progress()
        self.history: list[dict[str, Any]] = []
        self.warnings: list[str] = []  # what makes the result doubtful: see minires.train.checks
        self.checkpoints = Checkpoints(self.out)
        self._dropout_before: dict[str, Any] = {}
        self._pending: list[Callable[[], None]] = []  # what is to be done with the figures of the last steps
        on_gpu = self.device != "cpu"
        self._capture = captured.Capture(model, self.optimizer, self._loss, say) if on_gpu else None
        self._drawn = -math.inf
        self._since = time.perf_counter()
        self._open_folder(resume)

    # ------------------------------------------------------------------------------------------ the run

    def run(self) -> dict[str, Any]:
        """Train to the end, test, and write the figures; return what ``summary.json`` holds.

        Raises: Interrupted after SIGINT or SIGTERM, once the state is saved; MiniresError that names the
        first layer whose output or gradient was not finite; MiniresError if a file cannot be written.
        """
        config = self.config
        self.say(
            f"{config.model} on {self.splits.source}: {len(self.train_set)} training, "
            f"{len(self.val_set) if self.val_set else 0} validation, {len(self.splits.test)} test pictures; "
            f"recipe {config.recipe}, {config.epochs} epochs, seed {config.seed}; run folder {self.out}"
        )
        if config.normalize == "data":
            self._warn(checks.constant_channels(self.normalize))
        if self.progress.epoch == config.epochs:
            self.say(f"all {self.progress.step} steps are done; testing again")
        elif self.progress.step:
            self.say(f"continuing after step {self.progress.step}, in epoch {self.progress.epoch + 1}")
        if left_out := report.left_out(config, self.train_set):
            self.say(
                f"each epoch leaves out {left_out} of the {len(self.train_set)} training pictures, others "
                f"each time, which make no whole batch of {config.batch_size} (drop_last)"
            )
        per_epoch = len(self.train_set) - left_out
        hidden = None if self._show is None else not self._show
        with StopWish() as stop, tqdm(
            total=config.epochs * per_epoch, initial=self.progress.epoch * per_epoch + self.progress.pictures,
            unit=" pictures", disable=hidden, dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {rate_fmt}, {remaining} left{postfix}",
        ) as bar, backend.before_compiling(functools.partial(self._say_beside, bar)), \
                backend.precision(config.precision):  # fmt: skip
            self._since, self._forward.say = time.perf_counter(), functools.partial(self._say_beside, bar)
            while self.progress.epoch < config.epochs:
                self._epoch(stop, bar)
            if stop.wanted:
                self._leave()
        return self._finish()

    def _epoch(self, stop: StopWish, bar: Any) -> None:
        """Train for one epoch, or the rest of one, then validate, report and save."""
        config, progress = self.config, self.progress
        bar.set_description_str(f"epoch {progress.epoch + 1}/{config.epochs}")
        batches = self.loader.epoch(progress.epoch, progress.batch)
        with modes(self.model, training=True), closing(batches):  # type: ignore[type-var]
            for x, y in batches:
                self._step(x, y)
                progress.epoch_seconds += self._tick()
                seen = max(1, progress.pictures)
                loss, accuracy = progress.loss / seen, progress.right / seen
                text = f"loss {run_folder.shown(loss, 3)}, accuracy {100 * accuracy:.1f}%"
                bar.set_postfix_str(text, refresh=False)
                bar.update(len(y))
                last = progress.batch == len(self.loader)
                if last:
                    self._settle()
                if stop.wanted:
                    self._leave()
                if config.checkpoint_every and progress.step % config.checkpoint_every == 0 and not last:
                    self.save()
        with self.ema.swap() if self.ema else nullcontext():
            val = evaluate(self.model, self.val_set, self.normalize) if self.val_set else None
        self._tick()
        row = self._row(val)
        self.history.append(row)
        self.schedule.epoch_end(row["train_loss"] if val is None else val.loss)
        self._say_beside(bar, run_folder.epoch_line(row, config.epochs))
        if not any(text.startswith("after epoch") for text in self.warnings):  # once is enough
            averages = {f"average of {path}": a for path, a in self.ema.averages.items()} if self.ema else {}
            found = checks.not_finite(f"after epoch {row['epoch']}", {**self._numbers(), **averages})
            self._warn(found, functools.partial(self._say_beside, bar))
        self.progress = progress.next_epoch()
        self.save()
        self._write_history()
        if stop.wanted:
            self._leave()

    def _say_beside(self, bar: Any, line: str) -> None:
        """Say a line while the bar is shown."""
        with bar.external_write_mode():
            self.say(line)

    def _warn(self, found: Iterable[str], say: Callable[[str], None] | None = None) -> None:
        """Say what was found, and keep it for the summary."""
        for text in found:
            if text not in self.warnings:
                self.warnings.append(text)
                (say or self.say)(f"warning: {text}")

    def _numbers(self) -> dict[str, Any]:
        """All that the model learns and measures."""
        parameters = {path: parameter.data for path, parameter in self.model.named_parameters()}
        return {**parameters, **dict(self.model.named_buffers())}

    def _tick(self) -> float:
        """Add the time since the last call to the run's; return it."""
        before, self._since = self._since, time.perf_counter()
        self.progress.seconds += self._since - before
        return self._since - before

    def _step(self, x: np.ndarray, y: np.ndarray) -> None:
        """One step of the optimiser; nothing is changed if its loss or gradient is not finite."""
        x = x.astype(self.activations, copy=False)
        self._dropout_before = self.model.random_states()
        self.optimizer.lr = self.schedule.lr(self.progress.step)
        if self._capture and (step := self._capture(x, y)):
            slot = step(x, y)
            self._settle()
            self._pending.append(functools.partial(self._account, slot.read, x, y, self.progress.step))
        else:
            self._settle()
            self._eager_step(x, y)
        if self.ema:
            self.ema.update()
        self.progress.batch += 1
        self.progress.step += 1

    def _eager_step(self, x: np.ndarray, y: np.ndarray) -> None:
        pictures = Tensor(backend.to_device(x, self.device))
        logits = self._forward(pictures)
        loss = self._loss(logits, y)
        value = float(loss.item())
        if not math.isfinite(value):
            self._stop_not_finite(f"the loss is {value}", x, y, self.progress.step)
        loss.backward()
        norm = self.optimizer.gradient_norm()
        if not math.isfinite(norm):
            self._stop_not_finite(f"the norm of the gradients is {norm}", x, y, self.progress.step)
        self.optimizer.step(norm=norm)
        self.optimizer.zero_grad()
        right = int((logits.numpy().argmax(axis=1) == y).sum())
        self._account(lambda: captured.Figures(value, right, norm), x, y, self.progress.step)

    def _settle(self) -> None:
        """Read the figures of the steps that were started and not yet read."""
        while self._pending:
            self._pending.pop(0)()

    def _account(self, read: Callable[[], captured.Figures], x: np.ndarray, y: np.ndarray, step: int) -> None:
        """Add the figures of one step to those of the epoch."""
        figures, progress = read(), self.progress
        for what, value in (("loss", figures.loss), ("norm of the gradients", figures.norm)):
            if not math.isfinite(value):
                self._stop_not_finite(f"the {what} is {value}", x, y, step)
        progress.pictures += len(y)
        progress.loss += figures.loss * len(y)
        progress.right += figures.right
        progress.norm += figures.norm

    def _loss(self, logits: Tensor, y: Any) -> Tensor:
        return cross_entropy(logits, y, label_smoothing=self.config.label_smoothing)

    def _stop_not_finite(self, what: str, x: np.ndarray, y: np.ndarray, step: int) -> None:
        batch = self.progress.batch - (self.progress.step - step)
        place = f"step {step} (epoch {self.progress.epoch + 1}, batch {batch})"
        self.model.load_random_states(self._dropout_before)
        pictures = Tensor(backend.to_device(x, self.device))
        first = first_not_finite(self.model, pictures, lambda logits: self._loss(logits, y))
        diverged = not first.startswith("the input")
        self.warnings.append(
            f"{checks.LOST if diverged else ''}{what} at {place}. First not finite: {first}. The run is "
            "stopped, and what it has saved is kept; "
            + (f"try {checks.GENTLER}" if diverged else "mend the pictures or their normalisation")
        )
        self._tick()
        self._drawn = -math.inf
        self._write_history()
        self._write_summary(diverged)
        raise MiniresError(self.warnings[-1])

    # ---------------------------------------------------------------------------------------- the state

    def save(self) -> Path:
        """Write a checkpoint of the run as it stands. Raises: MiniresError if it cannot be written."""
        self._settle()
        groups = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.ema:
            groups["ema"] = self.ema.state_dict()
        info = {
            "kind": "checkpoint",
            "config": self.config.to_dict(),
            "data": _fingerprint(self.train_set),
            "threads": backend.threads(),
            "progress": dataclasses.asdict(self.progress),
            "random": self.model.random_states(),
            "schedule": self.schedule.state_dict(),
            "history": self.history,
            "warnings": self.warnings,
        }
        path = self.checkpoints.save(self.progress.step, groups, info)
        self._tick()  # saving is time of the run, but not of training
        return path

    def _load(self) -> None:
        """Continue from the newest undamaged checkpoint, or from the beginning if there is none."""
        found = self.checkpoints.latest()
        if found is None:
            return
        path, groups, info = found
        if info.get("kind") != "checkpoint":
            raise CheckpointError(f"{path} is not a checkpoint of a run")
        if different := differences(info["config"], self.config.to_dict(), ignore=FREE):
            raise CheckpointError(
                f"{path} belongs to another run: {'; '.join(different)}. "
                "Continue it with its own settings, or choose another folder"
            )
        if info["data"] != _fingerprint(self.train_set):
            raise CheckpointError(
                f"{path} was trained on other pictures than {self.splits.source} holds now; "
                "make the same data available again, or choose another folder"
            )
        if info["threads"] != backend.threads():
            warnings.warn(
                f"the run used {info['threads']} threads and continues with {backend.threads()}: sums are "
                "rounded in another order, so the last bits may differ", stacklevel=4,
            )  # fmt: skip
        try:
            self.model.load_state_dict(groups.get("model", {}))
            self.optimizer.load_state_dict(groups.get("optimizer", {}))
            if self.ema:
                self.ema.load_state_dict(groups.get("ema", {}))
        except CheckpointError as error:
            raise CheckpointError(f"{path} is of another model: {error}") from error
        self.model.load_random_states(info["random"])
        self.schedule.load_state_dict(info["schedule"])
        self.history = info["history"]
        self.warnings = info.get("warnings", [])  # older checkpoints have none
        self.progress = Progress(**info["progress"])

    def _check_folder(self, resume: bool) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"{self.out} is a file; choose a folder for the run")
        held = [path.name for pattern in RUN_FILES for path in self.out.glob(pattern)]
        if held and not resume:
            raise ConfigError(
                f"{self.out} holds a run already ({', '.join(held[:3])}); "
                "continue it with resume=True, or choose another folder"
            )
        if resume and not held:
            raise CheckpointError(f"{self.out} holds no run to continue; start one without resume=True")

    def _open_folder(self, resume: bool) -> None:
        if resume:
            self._load()
            return
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MiniresError(f"cannot make the folder {self.out}: {error.strerror}") from error
        run_folder.write_json(self.out / "config.json", self.config.to_dict())

    def _leave(self) -> None:
        path = self.save()
        self._write_history()
        raise Interrupted(f"stopped after step {self.progress.step}; everything is saved in {path}")

    # -------------------------------------------------------------------------------------- the figures

    def _row(self, val: Evaluation | None) -> dict[str, Any]:
        p = self.progress
        return {
            "epoch": p.epoch + 1,
            "step": p.step,
            "lr": self.optimizer.lr,
            "train_loss": p.loss / p.pictures,
            "train_accuracy": p.right / p.pictures,
            "val_loss": run_folder.finite(val.loss if val else None),
            "val_accuracy": val.accuracy if val else None,
            "gradient_norm": p.norm / len(self.loader),
            "pictures_per_second": p.pictures / max(p.epoch_seconds, 1e-9),
            "seconds": p.epoch_seconds,
        }

    def _write_history(self) -> None:
        if not self.history:
            return
        run_folder.write_metrics(self.out / "metrics.csv", self.history)
        if time.monotonic() - self._drawn > REDRAW or self.progress.epoch == self.config.epochs:
            title = f"{self.config.model} on {self.train_set.name}, recipe {self.config.recipe}"
            run_folder.draw_curves(
                self.out / "curves.png",
                self.history,
                title=title,
                label_smoothing=self.config.label_smoothing,
            )
            self._drawn = time.monotonic()

    def _finish(self) -> dict[str, Any]:
        """Test the weights that are kept, and write them and all figures."""
        config, test_set = self.config, self.splits.test
        with self.ema.swap() if self.ema else nullcontext():
            if config.recalibrate:
                recalibrate(self.model, self.train_set.images, self.normalize)
            val = evaluate(self.model, self.val_set, self.normalize) if self.val_set else None
            test = evaluate(self.model, test_set, self.normalize)
            found = checks.not_finite("in the model that is kept", self._numbers())
            model_file.save_model(self.out / model_file.NAME, model_file.Trained(
                self.model, config.model, self.variant, test_set.classes, self.normalize,
                (test_set.images.shape[1], test_set.images.shape[2]), self.train_set.name,
            ))  # fmt: skip
        self._tick()
        run_folder.draw_confusion(
            self.out / "confusion.png", test_set.labels, test.probabilities.argmax(axis=1), test_set.classes
        )
        run_folder.draw_mistakes(self.out / "mistakes.png", test_set, test.probabilities)
        self._write_history()
        last, losses = self.history[-1], {"validation": val.loss if val else None, "test": test.loss}
        self._warn([*found, *checks.outcome(
            last["train_loss"], last["train_accuracy"], self.train_set.labels, test_set.classes, **losses
        )])  # fmt: skip
        finite = not found and all(math.isfinite(loss) for loss in losses.values() if loss is not None)
        diverged = not finite or checks.diverged(last["train_loss"], len(test_set.classes))
        summary = self._write_summary(diverged, test=test, val=val)
        self.say(
            f"test accuracy {100 * test.accuracy:.2f}% ({round(test.accuracy * len(test_set))} of "
            f"{len(test_set)}), test loss {run_folder.shown(test.loss)}, {self.progress.seconds:.0f} s; "
            f"see {self.out}"
        )
        return summary

    def _write_summary(self, diverged: bool, **tested: Evaluation | None) -> dict[str, Any]:
        summary = report.summary(
            self.config, self.splits, self.train_set, self.model, self.history, diverged=diverged,
            seconds=self.progress.seconds, steps=self.progress.step, device=self.device,
            warnings=self.warnings, **tested,
        )  # fmt: skip
        run_folder.write_json(self.out / "summary.json", summary)
        return summary

    def _normalization(self) -> data.Normalize:
        choice = self.config.normalize
        if isinstance(choice, dict):
            return data.Normalize(**choice)
        return data.Normalize.of(self.train_set) if choice == "data" else data.Normalize.none()


def _fingerprint(dataset: data.Dataset) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(dataset.images).reshape(-1).data)
    digest.update(np.ascontiguousarray(dataset.labels).data)
    return digest.hexdigest()
