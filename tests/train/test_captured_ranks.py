"""The captured step of several ranks, each with a GPU of its own: stand-ins for CuPy and NCCL, with threads
as ranks. With a GPU, one rank and NCCL itself."""

from __future__ import annotations

import signal
from dataclasses import replace

import cuda_emulator
import fake_cupy
import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits

from minires import backend, data, nn
from minires.distributed import Solo, bounds, nccl, run
from minires.errors import ConfigError, MiniresError
from minires.interrupt import Interrupted
from minires.nn.hooks import Bare
from minires.ops.cross_entropy import cross_entropy
from minires.optim import SGD, Adam
from minires.tensor import Tensor
from minires.train import Trainer, captured
from minires.train.shared import Shared

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(cuda_emulator.compiler() is None, reason="there is no g++ here"),
    pytest.mark.usefixtures("no_figures"),
]


@pytest.fixture
def two_gpus(monkeypatch):
    fake_cupy.pretend(monkeypatch, gpus=2)
    return backend.nccl()


# ------------------------------------------------------------------------------------------------ steps


def _network(norm=True):
    rng = np.random.default_rng(0)
    parts = {"conv1": nn.Conv2d(3, 4, 3, padding="same", rng=rng)}
    if norm:
        parts["bn1"] = nn.BatchNorm2d(4, momentum=0.9, relu=True)
    parts |= {"mean": nn.GlobalAvgPool2d(), "fc": nn.Linear(4, 3, rng=rng)}
    return nn.Sequential(**parts)


def _batches(count, size):
    rng = np.random.default_rng(1)
    return [(rng.standard_normal((size, 6, 6, 3)), rng.integers(0, 3, size)) for _ in range(count)]


def _launched(model, optimizer, x, y):
    """A step, each operation launched by itself; its figures."""
    logits = model(Tensor(x))
    loss = cross_entropy(logits, y)
    loss.backward()
    length = optimizer.gradient_norm()
    optimizer.step(norm=length)
    optimizer.zero_grad()
    hits = int((logits.numpy().argmax(axis=1) == y).sum())
    return captured.Figures(loss.item(), hits, length)


def _in_one_process(make, batches, norm=True):
    model = _network(norm).astype("float64").train()
    optimizer, figures = make(model.named_parameters()), []
    for x, y in batches:
        figures.append(_launched(model, optimizer, x, y))
    return figures, {**model.state_dict(), **optimizer.state_dict()}


def _by_graph(comm, sums, make, batches, device, norm=True):
    """The same, on the rank's share: the first step launched anew, the others captured."""
    model = _network(norm).astype("float64").to(device).train()
    optimizer, step, figures = make(model.named_parameters()), None, []
    shared = Shared(model, optimizer, comm, sums)
    for x, y in batches:
        own = slice(*bounds(len(y), comm.rank, comm.size))
        if figures:
            step = step or captured.CapturedStep(
                model, optimizer, cross_entropy, x[own], y[own], gradients=shared.gradients, pictures=len(y)
            )
            figures.append(step(x[own], y[own]).read())
            continue
        shared.begin()
        logits = model(Tensor(backend.to_device(x[own], device)))
        loss = cross_entropy(logits, y[own]) * (len(y[own]) / len(y))
        loss.backward()
        hits = int((logits.numpy().argmax(axis=1) == y[own]).sum())
        lost, hits, _ = shared.finish(loss.item(), hits, 0, None)
        length = optimizer.gradient_norm()
        optimizer.step(norm=length)
        optimizer.zero_grad()
        figures.append(captured.Figures(lost, hits, length))
    return figures, {**model.state_dict(), **optimizer.state_dict()}


OPTIMIZERS = {
    "adam": lambda p: Adam(p, 1e-2, weight_decay=1e-3),
    "clipped": lambda p: SGD(p, 0.1, momentum=0.9, clip_norm=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_captured_steps_of_two_ranks_are_those_of_one_process(two_gpus, name):
    """With 5 pictures in a batch, 2 on one rank and 3 on the other."""
    make, batches = OPTIMIZERS[name], _batches(6, 5)

    def work(comm):
        device = f"cuda:{comm.rank}"
        backend.make_current(device)
        return _by_graph(comm, nccl.Nccl(comm, device), make, batches, device, norm=False)

    (figures, state), other = run(2, work)
    alone, right = _in_one_process(make, batches, norm=False)
    assert figures == other[0]
    for found, wanted in zip(figures, alone, strict=True):
        assert found.right == wanted.right
        assert found.loss == pytest.approx(wanted.loss, rel=1e-12)
        assert found.norm == pytest.approx(wanted.norm, rel=1e-10)
    for key, array in right.items():
        assert np.allclose(state[key], array, rtol=1e-10, atol=1e-12), key
        assert state[key].tobytes() == other[1][key].tobytes(), key
    assert [one.captured for one in two_gpus.communicators] == [1, 1]
    assert [one.replayed for one in two_gpus.communicators] == [5, 5]


def test_running_statistics_move_by_the_mean_of_the_ranks(two_gpus):
    """In each replay, from where they were; and not while the step is captured."""
    batches = _batches(3, 6)

    def work(comm):
        device = f"cuda:{comm.rank}"
        backend.make_current(device)
        model = _network().astype("float64").to(device).train()
        optimizer = SGD(model.named_parameters(), 0.0)
        for parameter in model.parameters():
            parameter.grad = backend.array_module(parameter.data).zeros_like(parameter.data)
        optimizer.step()  # makes its tables
        shared, step = Shared(model, optimizer, comm, nccl.Nccl(comm, device)), None
        for x, y in batches:
            own = slice(*bounds(6, comm.rank, 2))
            step = step or captured.CapturedStep(
                model, optimizer, cross_entropy, x[own], y[own], gradients=shared.gradients, pictures=6
            )
            step(x[own], y[own]).read()
        return model.state_dict()

    model = _network().astype("float64").train()
    for x, _ in batches:
        before, of_ranks = model.state_dict(), []
        for own in (slice(0, 3), slice(3, 6)):
            model.load_state_dict(before)
            model(Tensor(x[own]))
            of_ranks.append(model.state_dict())
        model.load_state_dict({key: (of_ranks[0][key] + of_ranks[1][key]) / 2 for key in before})
    right = model.state_dict()
    for state in run(2, work):
        for key in ("bn1.running_mean", "bn1.running_var"):
            assert np.allclose(state[key], right[key], rtol=1e-10, atol=1e-12), key


@pytest.mark.parametrize("way", fake_cupy.WAYS)
def test_one_rank_with_nccl_is_one_without(monkeypatch, way):
    fake_cupy.take(way, monkeypatch)
    batches = _batches(6, 4)
    figures, state = _by_graph(Solo(), nccl.Nccl(Solo(), "cuda"), OPTIMIZERS["adam"], batches, "cuda")
    model = _network().astype("float64").to("cuda").train()
    optimizer, step, wanted = OPTIMIZERS["adam"](model.named_parameters()), None, []
    for x, y in batches:
        if wanted:
            step = step or captured.CapturedStep(model, optimizer, cross_entropy, x, y)
            wanted.append(step(x, y).read())
            continue
        wanted.append(_launched(model, optimizer, backend.to_device(x, "cuda"), y))
    assert figures == wanted
    for key, array in {**model.state_dict(), **optimizer.state_dict()}.items():
        # A running statistic is what it was and its move, so it may be another by one rounding.
        exact = "running" not in key
        assert np.array_equal(state[key], array) if exact else np.allclose(state[key], array, 1e-14), key


# ------------------------------------------------------------------------------------------------- runs

CALM = replace(CONFIG, epochs=2, device="cuda", precision="fp32", checkpoint_every=0)
STEPS = 12  # of an epoch, the last of 5 pictures


def _without_dropout():
    model = small_model()
    model.drop.rate = 0.0
    return model


def _trained(out, *, change=lambda comm, trainer: None, resume=False, **changes):
    """Both ranks' trainers after their run, and what each said; an error of theirs in the trainer's place."""

    def work(comm):
        said = []
        trainer = Trainer(
            replace(CALM, **changes), out, splits=small_splits(), model=_without_dropout(), progress=False,
            say=said.append, comm=comm, resume=resume,
        )  # fmt: skip
        change(comm, trainer)
        try:
            trainer.run()
        except (MiniresError, Interrupted) as error:
            return trainer, said, error
        return trainer, said, None

    return run(2, work)


def _state(trainer):
    return {
        **trainer.model.state_dict(), **trainer.optimizer.state_dict(),
        **{f"average {path}": np.array(array) for path, array in trainer.ema.averages.items()},
    }  # fmt: skip


def _figures(trainer):
    timed = ("second", "per_s")
    return [
        {name: value for name, value in row.items() if not any(word in name for word in timed)}
        for row in trainer.history
    ]


def _same(one, other):
    """Whether two trainers, or what :func:`_whole` gives, have the same bits."""
    (state, figures), (others, wanted) = (
        given if isinstance(given, tuple) else (_state(given), _figures(given)) for given in (one, other)
    )
    assert state.keys() == others.keys()
    assert all(state[key].tobytes() == others[key].tobytes() for key in state)
    assert figures == wanted


_kept = {}


def _whole(folder, **changes):
    """State and figures of a run that nothing stopped."""
    name = str(changes)
    if name not in _kept:
        trainer = _trained(folder / "whole", **changes)[0][0]
        _kept[name] = _state(trainer), _figures(trainer)
    return _kept[name]


def test_a_captured_run_of_two_ranks_is_one_launched_anew_and_one_summed_over_the_host(
    two_gpus, tmp_path, monkeypatch
):
    """With a last batch that is smaller, a moving average and clipping."""
    runs, warm_up = {}, captured.WARM_UP
    for way in ("captured", "anew", "over the host"):
        if way != "captured":
            monkeypatch.setattr(captured, "WARM_UP", 10**6)
        if way == "over the host":
            monkeypatch.setattr(two_gpus, "get_unique_id", lambda: 1 / 0)
        runs[way] = _trained(tmp_path / way)
    (first, said, _), (second, *_) = runs["captured"]
    assert first.device == "cuda:0" and second.device == "cuda:1"
    assert first._steps.capture.step and second._steps.capture.step
    assert "the gradients are summed by NCCL 2.28.9, from GPU to GPU" in said
    assert not [line for line in said if "captured into" in line]
    replays = [one.replayed for one in two_gpus.communicators]
    assert replays[0] == replays[1] == 2 * (STEPS - 1) - warm_up and not any(replays[2:])
    for way in ("anew", "over the host"):
        for trainer, *_ in runs[way]:
            _same(first, trainer)
    _same(first, second)
    said = [line for line in runs["over the host"][0][1] if " on the host" in line or "to the host" in line]
    assert said == [
        "the gradients are copied to the host to be summed, not from GPU to GPU by NCCL: division by zero",
        "the step is not captured into a CUDA graph: the gradients are summed on the host, and a graph runs "
        "on the GPU alone",
    ]


def test_if_one_rank_cannot_capture_none_does(two_gpus, tmp_path, monkeypatch):
    passes = captured.CapturedStep._launch_passes

    def refuse(step, *given):
        found = passes(step, *given)
        if step.comm.rank == 1:
            raise RuntimeError("no graphs today")
        return found

    monkeypatch.setattr(captured.CapturedStep, "_launch_passes", refuse)
    ran = _trained(tmp_path / "run", epochs=1)
    assert [trainer.progress.epoch for trainer, *_ in ran] == [1, 1]
    assert not any(one.captured for one in two_gpus.communicators)
    told = [line for line in ran[0][1] if "captured into" in line]
    assert len(told) == 1 and "RuntimeError: no graphs today): it is launched anew" in told[0]
    monkeypatch.setattr(captured, "WARM_UP", 10**6)
    _same(ran[0][0], _trained(tmp_path / "anew", epochs=1)[0][0])


def test_a_rank_that_fails_behind_the_sum_takes_the_others_along(two_gpus, tmp_path, monkeypatch):
    update = captured.CapturedStep._launch_update

    def refuse(step, figures):
        update(step, figures)
        if step.comm.rank == 1:
            raise RuntimeError("no memory")

    monkeypatch.setattr(captured.CapturedStep, "_launch_update", refuse)
    ran = _trained(tmp_path / "run", epochs=1)
    assert all(trainer._steps.capture.step is None for trainer, *_ in ran)
    assert not any(one.replayed for one in two_gpus.communicators)


def test_what_stands_in_the_way_of_one_rank_is_said_by_all(two_gpus, tmp_path):
    def work(comm):
        backend.make_current(f"cuda:{comm.rank}")
        model = _without_dropout().to(f"cuda:{comm.rank}")
        model.drop.rate = 0.5 * comm.rank
        optimizer, said = SGD(model.named_parameters(), 0.1), []
        shared = Shared(model, optimizer, comm, nccl.Nccl(comm, f"cuda:{comm.rank}"))
        capture = captured.Capture(
            model, optimizer, cross_entropy, said.append, gradients=shared.gradients
        )
        return capture.is_possible, said

    (possible, said), other = run(2, work)
    assert not possible and (possible, said) == other
    assert said == [
        "the step is not captured into a CUDA graph: drop.rng draws in each step, and a graph would repeat "
        "the first draw"
    ]


def test_old_nccl_and_batch_norm_over_all_are_obstacles(two_gpus, tmp_path):
    two_gpus.version = 20804
    trainer, said, _ = _trained(tmp_path / "old", epochs=1)[0]
    why = "the step is not captured into a CUDA graph: sums of NCCL 2.8.4 cannot be captured"
    assert trainer.progress.epoch == 1 and [line for line in said if line.startswith(why)]
    two_gpus.version = 22809
    trainer, said, _ = _trained(tmp_path / "sync", epochs=1, batch_norm="sync")[0]
    assert trainer.progress.epoch == 1 and not trainer._steps.capture.is_possible
    assert [line for line in said if "batch norm over all processes (sync) sums on the host" in line]


def test_which_batches_are_replayed_hangs_on_the_size_of_the_batch_of_all():
    """Of 8 pictures and of 7 the second of two ranks has 4."""

    class Step:
        shape = (4, 2, 2, 3)

    capture = object.__new__(captured.Capture)
    capture.batches, capture.is_possible, capture.step, capture._of = 10, True, Step(), (8, 2, 2, 3)
    model = _without_dropout()
    capture._bare, capture.gradients = Bare(model), object()
    x, y = np.zeros((4, 2, 2, 3)), np.zeros(4, int)
    assert capture(x, y, 8) is capture.step and capture(x, y, 7) is None
    with model.register_forward_hook(lambda *given: None):  # a graph calls no hook
        assert capture(x, y, 7) is None
        with pytest.raises(MiniresError, match="the model itself has a forward hook, but the steps of all"):
            capture(x, y, 8)
        capture.gradients = None
        assert capture(x, y, 8) is None
    assert capture(x, y, 8) is capture.step


@pytest.mark.parametrize("at", [5, 9, STEPS - 1, STEPS + 1], ids="batch{}".format)
def test_a_rank_without_its_pictures_keeps_nobody_waiting(two_gpus, tmp_path, at):
    """In the warm-up of a run that goes on, in replays, in the last batch, which is launched anew."""
    _broken(two_gpus, tmp_path, at)


def test_a_rank_without_its_pictures_keeps_nobody_waiting_before_and_while_a_step_is_captured(
    two_gpus, tmp_path
):
    for at in (captured.WARM_UP - 1, captured.WARM_UP):
        _broken(two_gpus, tmp_path / str(at), at)


def test_a_rank_without_its_pictures_keeps_nobody_waiting_where_no_step_is_captured(two_gpus, tmp_path):
    _broken(two_gpus, tmp_path, 5, accumulate=2)


@pytest.mark.parametrize("norm", ["local", "sync"])
def test_a_rank_without_its_pictures_keeps_nobody_waiting_on_the_cpu(two_gpus, tmp_path, norm):
    _broken(two_gpus, tmp_path, 5, device="cpu", batch_norm=norm)


def _broken(two_gpus, folder, at, **changes):
    def breaks(comm, trainer):
        if comm.rank == 0:
            return
        epoch = trainer.loader.epoch

        def batches(number, start=0):
            for place, batch in enumerate(epoch(number, start), start):
                if number * STEPS + place == at:
                    raise data.Unreadable("cat.png cannot be read", ["cat.png"])
                yield batch

        trainer.loader.epoch = batches

    ran = _trained(folder / "broken", change=breaks, **changes)
    assert all(isinstance(error.__cause__, data.Unreadable) for *_, error in ran)
    assert all("rank 1 (" in str(error) and "cat.png cannot be read" in str(error) for *_, error in ran)
    assert {trainer.progress.step for trainer, *_ in ran} == {at}
    # What was saved is the state before the step: the run comes to the same end as one that was not broken.
    again = _trained(folder / "broken", resume=True, **changes)
    assert [error for *_, error in again] == [None, None]
    _same(again[0][0], _whole(folder, **changes))


@pytest.mark.parametrize("at", [1, 6], ids="step{}".format)
def test_a_wish_to_stop_of_one_rank_stops_all_after_the_same_step(two_gpus, tmp_path, at):
    def told(comm, trainer):
        """It is said once, as the file STOP is: not again when it is asked a moment later."""
        wishes = {at: signal.SIGTERM} if comm.rank == 1 else {}
        trainer._steps.wish = lambda: wishes.pop(trainer.progress.step, 0)

    ran = _trained(tmp_path / "run", change=told)
    assert all(isinstance(error, Interrupted) for *_, error in ran)
    assert {trainer.progress.step for trainer, *_ in ran} == {at + 1}
    assert all(f"stopped after step {at + 1} by SIGTERM" in str(error) for *_, error in ran)
    again = _trained(tmp_path / "run", resume=True)
    _same(again[0][0], _whole(tmp_path))


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(two_gpus, tmp_path):
    def spoils(comm, trainer):
        epoch = trainer.loader.epoch

        def batches(number, start=0):
            for place, (x, y) in enumerate(epoch(number, start), start):
                if comm.rank == 1 and place == 6:
                    x = np.full_like(x, np.nan)
                yield x, y

        trainer.loader.epoch = batches

    ran = _trained(tmp_path / "run", change=spoils)
    for *_, error in ran:
        assert "the loss is nan at step 6 (epoch 1, batch 6)" in str(error) and "on rank 1" in str(error)


def test_more_ranks_than_gpus_are_refused_before_anything_is_made(monkeypatch, tmp_path):
    fake_cupy.pretend(monkeypatch, gpus=1)
    with pytest.raises(ConfigError, match="2 processes on .* have 1 GPU, and each needs one of its own"):
        _trained(tmp_path / "run")
    assert not (tmp_path / "run").exists()
