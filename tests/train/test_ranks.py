"""A run is the same on any number of processes. Here the ranks are threads, which compute what processes do;
test_ranks_failures.py has these.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits, stripes

from minires import distributed, models, nn, optim
from minires.data import Dataset, Loader, Unreadable, augment
from minires.distributed import Solo, shares
from minires.errors import ConfigError, DataError, MiniresError
from minires.modes import is_recording
from minires.tensor import Tensor
from minires.train import (
    EMA,
    Config,
    Trainer,
    balance,
    checks,
    evaluate,
    evaluate_crops,
    planned,
    recalibrate,
    report,
    steps,
)  # fmt: skip
from minires.train.gradients import Gradients
from minires.train.shared import Shared
from minires.train.state import Progress

pytestmark = pytest.mark.usefixtures("no_figures")
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
ADAM = {"name": "adam", "lr": 1e-3, "weight_decay": 1e-3, "clip_norm": 1.0}
AUGMENT = [["shift", {"pixels": 2}], "flip", ["jitter", {}], ["crop", {}], "pca_colour"]


def with_norms(classes=3):
    """Batch norms, residual blocks, and a dropout."""
    model = models.build("resnet20_cifar", classes=classes, seed=0, widths=[4, 8, 8], repeats=[1, 1, 1])
    return nn.Sequential(drop=nn.Dropout(0.1, seed=3), net=model)


def numbers(model):
    return {path: array.copy() for path, array in checks.numbers(model).items()}


def trained(
    comm, *, optimizer=SGD, batch=32, pictures=160, sync=True, accumulate=1, count=10, weights=None,
    overlap=None, make=with_norms, dtype="float64",
):  # fmt: skip
    """Parameters and statistics after some steps, their averages, and the figures."""
    data = stripes(pictures, 1)
    parts = partial(steps.parts, batch_size=batch, accumulate=accumulate)
    share = None if comm.size == 1 else lambda n: shares(parts(n), comm.rank, comm.size)
    loader = Loader(data, batch, seed=2, augment=augment.build(AUGMENT), share=share)
    model = make().astype(dtype)
    chosen, progress = optim.build(optimizer, model.named_parameters()), Progress()
    average = EMA(model, 0.9)
    loss = balance.Loss(label_smoothing=0.1, weights=weights)
    step = steps.Steps(
        model, chosen, model, loss, pytest.fail, device="cpu", activations=np.dtype(dtype), ema=average,
        capture=None, parts=parts, shared=Shared(model, chosen, comm) if comm.size > 1 else None,
        sync=sync and comm.size > 1,
    )  # fmt: skip
    if overlap is not None and step.shared:
        learned = list(model.parameters())
        buffers = dict(model.named_buffers())
        step.shared.gradients = Gradients(
            learned, buffers, comm, figures=step.shared.gradients.figures, overlap=overlap
        )  # fmt: skip
    epoch = 0
    while progress.step < count:
        for n, (x, y) in enumerate(loader.epoch(epoch)):
            if progress.step < count:
                step(x, y, progress, chosen.lr, loader.pictures(n))
        epoch += 1
    return numbers(model), dict(average.averages), progress


def apart(one, other):
    """The largest difference of arrays by name, relative to the largest number of each."""
    assert one.keys() == other.keys()
    return max(float(abs(one[k] - other[k]).max() / max(abs(one[k]).max(), 1e-3)) for k in one)


CASES = {
    "equal shards": {},
    "unequal shards": {"batch": 35, "pictures": 140},
    "a smaller last batch": {"batch": 32, "pictures": 80},
    "in parts": {"accumulate": 2, "batch": 38, "pictures": 152},
    "class weights": {"weights": np.array([0.5, 1.0, 2.0])},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["SGD", "Adam"])
def test_any_number_of_ranks_makes_the_steps_of_one_process(optimizer, case):
    if optimizer is ADAM and case == "class weights":
        case = "unequal shards"
    weights, averages, progress = trained(Solo(), optimizer=optimizer, **CASES[case])
    for size in (1, 2, 4, 8):
        found = distributed.run(size, partial(trained, optimizer=optimizer, **CASES[case]))
        for own, own_averages, own_progress in found:
            assert apart(weights, own) < 1e-12, size
            assert apart(averages, own_averages) < 1e-12
            assert own_progress.loss == pytest.approx(progress.loss, rel=1e-12)
            assert (own_progress.right, own_progress.pictures) == (progress.right, progress.pictures)
            assert own_progress.norm == pytest.approx(progress.norm, rel=1e-12)
            assert all((own[name] == found[0][0][name]).all() for name in own)  # the same bits on all ranks


@pytest.mark.parametrize("size", [2, 3])
def test_running_statistics_become_the_mean_from_wherever_they_begin(size):
    """A smallest number so far may begin at infinity, or far above all; what has not moved keeps its bits."""
    begins = np.array([np.inf, 1e30, -1e20, 0.0, 7.1, np.inf, -np.inf, 0.3], np.float32)

    def work(comm):
        parameter, low = Tensor(np.zeros(3, np.float32), requires_grad=True), begins.copy()
        one = np.array(4.0, np.float32)  # a single number
        gradients = Gradients([parameter], {"low": low, "one": one}, comm, figures=1)
        gradients.begin()
        parameter.grad = np.ones(3, np.float32)
        low[:5] = [3, 5, 2 + comm.rank, 4, 7.2]
        one[...] = 4 + comm.rank
        gradients.finish(np.zeros(1))
        assert one == 4 + (size - 1) / 2
        return low

    found = distributed.run(size, work)
    mean = 2 + (size - 1) / 2
    assert np.allclose(found[0][:5], [3, 5, mean, 4, 7.2], rtol=1e-6)
    assert found[0][5:].tobytes() == begins[5:].tobytes()
    assert all(one.tobytes() == found[0].tobytes() for one in found)


def test_a_plain_mean_over_ranks_would_not_pass():
    """The usual mistake, with shards of other sizes, is seen by the tests above."""
    weights, _, _ = trained(Solo(), **CASES["unequal shards"])

    def mistaken(comm):
        def cut(sizes, of):
            return [
                steps.Part(part.rows, 1 / (len(sizes) * comm.size), part.place)
                for part in original(sizes, of)
            ]

        return cut

    original = steps.parts_of
    try:
        steps.parts_of = lambda sizes, of: mistaken(of)(sizes, of)
        found = distributed.run(4, partial(trained, **CASES["unequal shards"]))
    finally:
        steps.parts_of = original
    assert apart(weights, found[0][0]) > 1e-4


@pytest.mark.parametrize("size", [2, 3, 4])
def test_gradients_that_are_summed_during_the_backward_pass_are_the_same(size):
    weights, _, _ = trained(Solo())
    for own, _, _ in distributed.run(size, partial(trained, overlap=True), hosts=size):
        assert apart(weights, own) < 1e-12


def test_the_gradients_of_a_plan_are_summed_during_its_backward_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(planned, "WORTH", 1)
    sent = []
    plain = Gradients._send

    def send(self, bucket):
        sent.append(self._armed)
        plain(self, bucket)

    monkeypatch.setattr(Gradients, "_send", send)
    found = {}
    for hosts in (1, 2):
        runs = distributed.run(2, partial(run, out=tmp_path / str(hosts), make=deep), hosts=hosts)
        found[hosts] = numbers(runs[0][1].model)
        assert runs[0][1]._forward.plan is not None
        assert (True in sent) == (hosts == 2)  # while the pass went on
        sent.clear()
    assert all((found[1][name] == found[2][name]).all() for name in found[1])


def deep():
    rng = np.random.default_rng(0)
    layers = [nn.Conv2d(3, 64, 3, padding=1, rng=rng)]
    for _ in range(4):
        layers += [nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1, rng=rng)]
    return nn.Sequential(*layers, nn.GlobalAvgPool2d(), nn.Linear(64, 3, rng=rng))


def of_ghosts(size, *, batch=35, pictures=140, count=10):
    """What ``trained`` on so many ranks with local batch norm must come to, in one process: each share of a
    batch goes through the model by itself, from the same running statistics, and these become the mean."""
    data, model = stripes(pictures, 1), with_norms().astype("float64")
    loader = Loader(data, batch, seed=2, augment=augment.build(AUGMENT))
    optimizer = optim.build(SGD, model.named_parameters())
    done = 0
    for epoch in range(9):
        for x, y in loader.epoch(epoch):
            if done == count:
                return numbers(model)
            x, done = x.astype("float64"), done + 1
            mask = model.drop(Tensor(np.ones_like(x))).numpy()
            before = {path: array.copy() for path, array in model.named_buffers()}
            moved = {path: np.zeros_like(array) for path, array in before.items()}
            optimizer.zero_grad()
            for rank in range(size):
                for path, array in model.named_buffers():
                    array[...] = before[path]
                here = slice(rank * len(y) // size, (rank + 1) * len(y) // size)
                logits = model.net(Tensor(x[here] * mask[here]))
                share = (here.stop - here.start) / len(y)
                (balance.Loss(label_smoothing=0.1)(logits, y[here]) * share).backward()
                for path, array in model.named_buffers():
                    moved[path] += array / size
            for path, array in model.named_buffers():
                array[...] = moved[path]
            optimizer.step()
    raise AssertionError("too few steps")


@pytest.mark.parametrize("size", [2, 4, 8])
def test_local_batch_norm_sees_the_pictures_of_each_rank_by_themselves(size):
    expected = of_ghosts(size)
    for own, _, _ in distributed.run(size, partial(trained, sync=False, batch=35, pictures=140)):
        assert apart(expected, own) < 1e-12
    assert apart(expected, trained(Solo(), batch=35, pictures=140)[0]) > 1e-4


def test_a_parameter_without_a_gradient_stays_as_it_is_on_all_ranks():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.other = with_norms(), nn.Linear(2, 2)

        def forward(self, x):
            return self.net(x)

    before = numbers(Unused().other)
    for own, _, _ in distributed.run(2, partial(trained, make=Unused)):
        assert all((own[f"other.{name}"] == array).all() for name, array in before.items() if "bias" in name)
        assert own["other.weight"].shape == (2, 2)


# ------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("own", [False, True])
def test_the_pictures_of_all_ranks_are_those_of_one_process(own):
    def darker(x, rng):
        return (x * rng.random((len(x), 1, 1, 1))).astype(x.dtype)

    steps_of = augment.build(AUGMENT)
    if own:  # one that draws and applies at once
        steps_of = augment.Compose((*steps_of.steps, darker))
    data = stripes(50, 1)
    whole = list(Loader(data, 16, seed=4, augment=steps_of).epoch(1))
    for size in (2, 3):
        parts = [
            list(Loader(data, 16, seed=4, augment=steps_of,
                        share=lambda n, rank=rank, size=size: shares([n], rank, size)).epoch(1))
            for rank in range(size)
        ]  # fmt: skip
        for batch, (x, y) in enumerate(whole):
            assert (np.concatenate([part[batch][0] for part in parts]) == x).all()
            assert (np.concatenate([part[batch][1] for part in parts]) == y).all()


# --------------------------------------------------------------------------------------- evaluation


def test_a_set_is_tested_in_shares():
    data, model = stripes(37, 2), with_norms()
    normalize = Loader(data, 8).normalize
    whole = evaluate(model, data, normalize, batch_size=8)
    crops = evaluate_crops(model, data, normalize, side=10, crops=10)

    def work(comm):
        own = with_norms()
        return (
            evaluate(own, data, normalize, batch_size=8, comm=comm),
            evaluate_crops(own, data, normalize, side=10, crops=10, comm=comm),
        )

    for size in (2, 5, 40):  # more ranks than pictures, too
        found = distributed.run(size, work)
        for one, of_crops in found:
            assert one.loss == pytest.approx(whole.loss, rel=1e-6) and one.accuracy == whole.accuracy
            assert of_crops.loss == pytest.approx(crops.loss, rel=1e-6)
            assert of_crops.accuracy == crops.accuracy
        np.testing.assert_allclose(found[0][0].probabilities, whole.probabilities, rtol=1e-4)
        assert len(found[0][1].probabilities) == 37


def test_running_statistics_are_measured_anew_in_shares():
    data = stripes(53, 2)
    normalize = Loader(data, 8).normalize

    def work(comm):
        model = with_norms()
        recalibrate(model, data.images, normalize, batch_size=8, comm=comm)
        return dict(model.named_buffers())

    whole = work(Solo())
    for size in (2, 3, 10):
        for one in distributed.run(size, work):
            assert apart(whole, one) < 1e-5  # float32
            assert apart(whole, dict(with_norms().named_buffers())) > 1e-2


# ------------------------------------------------------------------------------------------- the run


def run(comm, out, config=CONFIG, *, resume=False, said=None, splits=None, make=small_model, observers=()):
    trainer = Trainer(
        None if resume else config, out, splits=splits or small_splits(), model=make(), resume=resume,
        progress=False, say=[].append if said is None else said.append, comm=comm, observers=observers,
    )  # fmt: skip
    return trainer.run(), trainer


def test_a_run_of_three_ranks_is_that_of_one(tmp_path):
    alone, trainer = run(Solo(), tmp_path / "alone", CONFIG_SYNC)
    said = []
    found = distributed.run(3, partial(run, out=tmp_path / "three", config=CONFIG_SYNC, said=said))
    assert [line for line in said if line.startswith("3 processes")]
    assert len([line for line in said if line.startswith("test accuracy")]) == 1
    assert alone["ranks"] == 1
    for summary, other in found:
        assert summary["ranks"] == 3
        assert summary["test_accuracy"] == found[0][0]["test_accuracy"]
        assert summary["test_loss"] == pytest.approx(alone["test_loss"], rel=2e-3)  # float32
        for row, own in zip(trainer.history, other.history, strict=True):
            assert own["train_loss"] == pytest.approx(row["train_loss"], rel=2e-3)
            assert own["val_loss"] == pytest.approx(row["val_loss"], rel=2e-3)
    assert sorted(path.name for path in (tmp_path / "three").iterdir()) == sorted(
        path.name for path in (tmp_path / "alone").iterdir()
    )


CONFIG_SYNC = Config(**{**CONFIG.to_dict(), "batch_norm": "sync"})


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_run_of_two_ranks_goes_on_with_another_number(tmp_path, size):
    class Stop(Exception):
        pass

    def stopped(comm):
        trainer = Trainer(
            CONFIG, tmp_path / "run", splits=small_splits(), model=small_model(), progress=False,
            say=[].append, comm=comm,
        )  # fmt: skip
        plain, left = trainer._step, [7]

        def limited(x, y):
            if not left[0]:
                raise Stop
            left[0] -= 1
            plain(x, y)

        trainer._step = limited
        with pytest.raises(Stop):
            trainer.run()
        return trainer.progress.step

    assert distributed.run(2, stopped) == [7, 7]
    go_on = partial(run, out=tmp_path / "run", resume=True)
    if size == 2:
        found = distributed.run(2, go_on)
        whole = distributed.run(2, partial(run, out=tmp_path / "whole"))
        for (_, trainer), (_, uninterrupted) in zip(found, whole, strict=True):
            same, other = numbers(trainer.model), numbers(uninterrupted.model)
            assert all((same[name] == other[name]).all() for name in other)  # to the bit
    else:
        with pytest.warns(UserWarning, match=f"was of 2 processes and goes on with {size}"):
            found = distributed.run(size, go_on)
    assert all(summary["epochs"] == CONFIG.epochs for summary, _ in found)


def test_a_broken_picture_of_one_rank_stops_all_at_one_step_and_is_named(tmp_path):
    def work(comm, out, *, resume=False, broken=True):
        trainer = Trainer(
            None if resume else CONFIG, out, splits=small_splits(), model=small_model(), progress=False,
            say=[].append, comm=comm, resume=resume,
        )  # fmt: skip
        plain = trainer.loader.epoch

        def epoch(number, start=0):
            for batch, pair in enumerate(plain(number, start), start):
                if broken and comm.rank == 1 and (number, batch) == (1, 1):
                    raise Unreadable("pictures/a.jpg cannot be read", ["a.jpg"])
                yield pair

        trainer.loader.epoch = epoch
        if not broken:
            return trainer.run(), numbers(trainer.model)
        with pytest.raises(MiniresError, match=r"rank 1 \(.*\): pictures/a.jpg cannot be read"):
            trainer.run()
        return trainer.progress.step

    per_epoch = -(-len(small_splits().train) // CONFIG.batch_size)
    assert distributed.run(2, partial(work, out=tmp_path / "run")) == [per_epoch + 1] * 2
    found = distributed.run(2, partial(work, out=tmp_path / "run", resume=True, broken=False))
    whole = distributed.run(2, partial(work, out=tmp_path / "whole", broken=False))
    assert all((found[0][1][name] == whole[0][1][name]).all() for name in found[0][1])


@pytest.mark.parametrize("batch_norm", ["local", "sync"])
def test_a_broken_picture_is_told_before_batch_norms_meet(tmp_path, batch_norm):
    config = Config(**{**CONFIG.to_dict(), "batch_norm": batch_norm})

    def work(comm):
        trainer = Trainer(
            config, tmp_path / batch_norm, splits=small_splits(), model=small_model(), progress=False,
            say=[].append, comm=comm,
        )  # fmt: skip
        plain = trainer.loader.epoch

        def epoch(number, start=0):
            yield from plain(number, start) if comm.rank != 2 else ()
            raise Unreadable("b.jpg cannot be read", ["b.jpg"])

        trainer.loader.epoch = epoch
        with pytest.raises(MiniresError, match=r"rank 2 .*b.jpg cannot be read"):
            trainer.run()

    distributed.run(3, work)


@pytest.mark.parametrize("batch_norm", ["local", "sync"])
def test_what_is_not_finite_on_one_rank_ends_all_and_is_named(tmp_path, batch_norm):
    class Spoilt(nn.Module):
        """Makes NaN in the fourth step of rank 1."""

        def __init__(self, rank):
            super().__init__()
            self.net, self.calls, self.rank = small_model(), 0, rank

        def forward(self, x):
            self.calls += self.training and is_recording()
            if self.rank == 1 and self.training and self.calls >= 4:
                x = x * float("nan")
            return self.net(x)

    config = Config(**{**CONFIG.to_dict(), "batch_norm": batch_norm, "plan": False})

    def work(comm):
        with pytest.raises(MiniresError, match=r"the loss is nan at step 3 .*on rank 1"):
            run(comm, tmp_path / batch_norm, config, make=lambda: Spoilt(comm.rank))

    distributed.run(3, work)


def test_a_wish_of_one_rank_stops_all_behind_one_step(tmp_path):
    from minires.interrupt import Interrupted

    def work(comm):
        trainer = Trainer(
            CONFIG, tmp_path / "run", splits=small_splits(), model=small_model(), progress=False,
            say=[].append, comm=comm,
        )  # fmt: skip
        plain = trainer._step

        def step(x, y):
            if comm.rank == 1 and trainer.progress.step == 4:
                trainer._wish.wanted = 15
            plain(x, y)

        trainer._step = step
        with pytest.raises(Interrupted, match="stopped after step 5 by SIGTERM") as stop:
            trainer.run()
        return trainer.progress.step, stop.value.number

    assert distributed.run(3, work) == [(5, 15)] * 3


def test_a_file_stops_a_run_and_goes_with_it(tmp_path):
    from minires.interrupt import Interrupted

    class Stop:
        pass

    def told(comm, out):
        trainer = Trainer(
            CONFIG, out, splits=small_splits(), model=small_model(), progress=False, say=[].append, comm=comm
        )
        (out / "STOP").touch() if comm.is_first else None
        with pytest.raises(Interrupted, match="by the file STOP; everything is saved"):
            trainer.run()
        return trainer.progress.step

    assert told(Solo(), tmp_path / "one") == 1
    assert distributed.run(2, partial(told, out=tmp_path / "two")) == [1, 1]
    for name in ("one", "two"):
        assert not (tmp_path / name / "STOP").exists()
        assert list((tmp_path / name).glob("checkpoint-*"))


def test_ranks_that_have_come_apart_save_nothing(tmp_path):
    from minires.train import Observer

    class Spoils(Observer):
        """What an observer must not do, and only rank 0 has observers."""

        def stepped(self, run):
            if run.progress.step == 3:
                next(iter(run.model.parameters())).data[...] += 1

    def work(comm):
        with pytest.raises(MiniresError, match="after step 5 rank 1 has other parameters than rank 0"):
            run(comm, tmp_path / "run", observers=[Spoils()])

    distributed.run(2, work)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_larger_batch_is_told_what_learning_rate_is_usual():
    rate = Config.of("cifar").optimizer["lr"]
    assert report.scaled(Config.of("cifar", batch_size=512)) == [
        f"batch_size is 4 times that of the recipe cifar, with its learning rate {rate:g}; {4 * rate:g}, "
        "with warm-up, is the usual start"
    ]
    assert report.scaled(Config.of("cifar")) == []
    assert report.scaled(Config.of("cifar", batch_size=512, optimizer={"name": "sgd", "lr": 0.4})) == []
    assert report.scaled(Config(batch_size=512, recipe="auto")) == []


class Measures(nn.Module):
    """A mask with infinity, an array that cannot be written, one that is put in the place of another in each
    step, and one that is made in the first."""

    def __init__(self):
        super().__init__()
        self.net, self.mask = small_model(), np.array([0, -np.inf, 1], np.float32)
        self.fixed = np.broadcast_to(np.float32(2), (3,))
        self.mean = np.zeros(3, np.float32)

    def forward(self, x):
        if self.training and is_recording():
            self.mean = 0.9 * self.mean + 0.1 * x.data.mean(axis=(0, 1, 2))
            self.late = 0.5 * getattr(self, "late", self.mean) + self.mean
        return self.net(x)


def test_what_layers_measure_is_the_mean_over_ranks_however_they_keep_it(tmp_path):
    # Means of pictures are linear, so those over ranks are those of one process.
    config = Config(**{**CONFIG.to_dict(), "batch_norm": "sync", "drop_last": True, "ema": 0.0})
    alone = run(Solo(), tmp_path / "alone", config, make=Measures)[1].model
    for _, trainer in distributed.run(2, partial(run, out=tmp_path / "two", config=config, make=Measures)):
        np.testing.assert_array_equal(trainer.model.mask, [0, -np.inf, 1])
        np.testing.assert_array_equal(trainer.model.fixed, 2)
        np.testing.assert_allclose(trainer.model.mean, alone.mean, rtol=1e-4, atol=1e-5)
        assert trainer.model.late.shape == (3,)


def test_a_parameter_that_learns_later_learns_on_all_ranks_alike(tmp_path):
    class Thaws(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.steps = small_model(), 0
            self.net.fc.bias.requires_grad = False

        def forward(self, x):
            self.steps += self.training and is_recording()
            if self.steps == 5:
                self.net.fc.bias.requires_grad = True
            return self.net(x)

    found = distributed.run(2, partial(run, out=tmp_path / "run", make=Thaws))
    one, other = (trainer.model.net.fc.bias.data for _, trainer in found)
    assert (one == other).all() and (one != 0).any()


def test_a_parameter_that_one_rank_alone_uses_gets_that_gradient_on_all():
    def work(comm):
        w, v = (nn.Parameter(np.ones(2)) for _ in range(2))
        gradients = Gradients([w, v], {}, comm, figures=1)
        gradients.begin()
        gradients.arm()
        (w.sum() + (v * 3).sum() if comm.rank == 1 else w.sum()).backward()
        total = gradients.finish(np.ones(1))
        return w.grad.tolist(), v.grad.tolist(), total.tolist()

    assert distributed.run(3, work) == [([3.0, 3.0], [3.0, 3.0], [3.0])] * 3


@pytest.mark.parametrize("overlap", [False, True])
def test_parameters_of_several_kinds_and_passes_are_summed(overlap):
    def work(comm):
        w, v = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(3, np.float32))
        gradients = Gradients([w, v], {}, comm, figures=1, overlap=overlap)
        found = []
        for _ in range(2):
            gradients.begin()
            for part in range(2):
                if part:
                    gradients.arm()
                (w.sum() * (1 + part)).backward()
                (v.sum() * (10 + part)).backward()
            gradients.finish(np.zeros(1))
            found.append((w.grad.tolist(), v.grad.tolist(), str(v.grad.dtype)))
            w.grad = v.grad = None
        gradients.close()
        return found

    assert distributed.run(2, work)[1] == [([6.0] * 2, [42.0] * 3, "float32")] * 2


def test_a_run_between_machines_leaves_no_thread_and_no_hook(tmp_path):
    import threading

    def senders():
        return [thread for thread in threading.enumerate() if thread.name == "minires-gradients"]

    before = senders()
    found = distributed.run(2, partial(run, out=tmp_path / "run"), hosts=2)
    assert [thread for thread in senders() if thread not in before] == []
    assert not any(p.node.hooks for _, trainer in found for p in trainer.model.parameters())


def test_an_observer_cannot_save_a_run_of_several_ranks(tmp_path):
    from minires.train import Observer

    class Saves(Observer):
        def stepped(self, run):
            run.save()

    said = []
    distributed.run(2, partial(run, out=tmp_path / "run", observers=[Saves()], said=said))
    assert [line for line in said if "all ranks must save together" in line]


def test_generators_that_have_come_apart_are_seen(tmp_path):
    from minires.train import Observer

    class Draws(Observer):
        def stepped(self, run):
            run.model.drop.rng.random()

    def work(comm):
        with pytest.raises(MiniresError, match="after step 5 rank 1 .* draws other random numbers"):
            run(comm, tmp_path / "run", observers=[Draws()])

    distributed.run(2, work)


def test_an_augmentation_that_calls_anew_is_not_taken_for_its_parent():
    class Upside(augment.Flip):
        def __call__(self, x, rng):
            return x[:, ::-1] if rng.random() < 0.9 else x

    data = stripes(20, 1)
    (whole, _), = Loader(data, 20, seed=4, augment=Upside()).epoch(0)
    for rank in range(2):
        (part, _), = Loader(
            data, 20, seed=4, augment=Upside(), share=lambda n, rank=rank: shares([n], rank, 2)
        ).epoch(0)
        assert (part == whole[10 * rank : 10 * rank + 10]).all()


# ------------------------------------------------------------------------------------ what is refused


def test_shares_of_one_picture_are_refused_where_batch_norms_see_them_alone(tmp_path):
    def behind_a_pool():
        rng = np.random.default_rng(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, rng=rng), nn.GlobalAvgPool2d(), nn.BatchNorm2d(4), nn.Linear(4, 3, rng=rng)
        )

    config = Config(**{**CONFIG.to_dict(), "batch_size": 3, "drop_last": True, "epochs": 1})

    def work(comm):
        with pytest.raises(ConfigError, match="gives one of 2 ranks a single picture.*batch_norm='sync'"):
            run(comm, tmp_path / "run", config, make=behind_a_pool)
        sync = Config(**{**config.to_dict(), "batch_norm": "sync"})
        return run(comm, tmp_path / "sync", sync, make=behind_a_pool)[0]["epochs"]

    assert distributed.run(2, work) == [1, 1]


def test_a_batch_with_fewer_pictures_than_ranks_is_refused_before_the_run(tmp_path):
    splits = small_splits()
    rest = len(splits.train) % CONFIG.batch_size or CONFIG.batch_size

    def work(comm):
        with pytest.raises(ConfigError, match=f"{rest} pictures?.* for {comm.size} ranks"):
            run(comm, tmp_path / "run", splits=splits)

    distributed.run(rest + 1, work)
    assert not (tmp_path / "run").exists()


def test_other_pictures_configurations_or_models_on_a_rank_are_refused(tmp_path):
    other = small_splits()
    swapped = Dataset(
        other.train.images[::-1].copy(), other.train.labels, other.train.classes, other.train.names, "x"
    )
    other = type(other)(swapped, other.val, other.test, other.source)

    def pictures(comm):
        with pytest.raises(DataError, match="rank 1 finds other pictures"):
            run(comm, tmp_path / "run", splits=other if comm.rank else small_splits())

    def settings(comm):
        with pytest.raises(ConfigError, match=r"seed is 0 on rank 0 and 7 on rank 2\. .*comm=Solo\(\)"):
            run(comm, tmp_path / "run", Config(**{**CONFIG.to_dict(), "seed": 7 * (comm.rank == 2)}))

    def network(comm):
        with pytest.raises(ConfigError, match="rank 1 was given another model"):
            run(comm, tmp_path / "run", make=lambda: with_norms() if comm.rank else small_model())

    for work in (pictures, settings, network):
        distributed.run(3, work)
        assert not (tmp_path / "run").exists()


def test_models_with_other_numbers_begin_with_those_of_the_first(tmp_path):
    found = distributed.run(
        2, lambda comm: run(comm, tmp_path / "run", make=lambda: small_model(seed=comm.rank))[1]
    )
    one, other = (numbers(trainer.model) for trainer in found)
    assert all((one[name] == other[name]).all() for name in one)


def test_a_folder_that_holds_a_run_is_refused_on_all_ranks(tmp_path):
    run(Solo(), tmp_path / "run")

    def work(comm):
        with pytest.raises(ConfigError, match="holds a run already"):
            run(comm, tmp_path / "run")

    distributed.run(2, work)
