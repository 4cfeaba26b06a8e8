"""The loader: order by seed, bit-exact resuming, and a thread that ends and reports."""

import threading
import time

import numpy as np
import pytest

from minires.data import Dataset, Loader, Normalize, build
from minires.errors import ConfigError

SPEC = [["shift", {"pixels": 2}], "flip", ["jitter", {}], "crop"]


def make(n=22):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(n)  # tells which picture it is
    return Dataset(
        images, np.arange(n, dtype=np.int64) % 3, ("a", "b", "c"), tuple(map(str, range(n))), "toy"
    )


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("minires-loader")]


def same(left, right):
    return len(left) == len(right) and all(
        np.array_equal(x, u) and np.array_equal(y, v) for (x, y), (u, v) in zip(left, right, strict=True)
    )


def test_an_epoch_has_every_picture_once_with_its_label():
    set_ = make()
    loader = Loader(set_, 5)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 5
    assert [len(x) for x, _ in batches] == [5, 5, 5, 5, 2]
    x, y = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    assert x.dtype == np.float32 and y.dtype == np.int64
    which = np.rint(x[:, 0, 0, 0] * 255).astype(int)
    assert sorted(which) == list(range(22)) and which.tolist() != list(range(22))
    assert np.array_equal(y, set_.labels[which])
    assert np.allclose(x, set_.images[which] / 255, atol=1e-7)


def test_order_follows_seed_and_epoch():
    def order(seed, epoch):
        return np.concatenate([x[:, 0, 0, 0] for x, _ in Loader(make(), 5, seed=seed).epoch(epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) and order(0, 0) != order(1, 0)
    rng = np.random.default_rng([3, 4])
    assert np.allclose(np.array(order(3, 4)) * 255, rng.permutation(22))


def test_without_shuffle_the_order_is_that_of_the_set():
    x = np.concatenate([x for x, _ in Loader(make(), 5, shuffle=False).epoch(7)])
    assert np.array_equal(x, Normalize.none()(make().images))


def test_drop_last_and_normalize():
    loader = Loader(make(), 5, drop_last=True, normalize=Normalize((0.5,) * 3, (0.25,) * 3), shuffle=False)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 4 and all(len(x) == 5 for x, _ in batches)
    assert np.allclose(batches[0][0], (make().images[:5] / 255 - 0.5) / 0.25, atol=1e-5)
    assert len(Loader(make(), 11)) == len(Loader(make(), 11, drop_last=True)) == 2


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_resuming_is_bit_exact(start):
    whole = list(Loader(make(), 5, seed=9, augment=build(SPEC)).epoch(3))
    tail = list(Loader(make(), 5, seed=9, augment=build(SPEC)).epoch(3, start))
    assert same(whole[start:], tail)
    assert not same(whole[:1], list(Loader(make(), 5, seed=9, augment=build(SPEC)).epoch(4))[:1])


def test_the_augmentation_differs_from_batch_to_batch():
    set_ = make()
    drawn = []
    loader = Loader(set_, 5, seed=2, augment=lambda x, rng: drawn.append(rng.random()) or x)
    list(loader.epoch(1))
    assert drawn == [np.random.default_rng([2, 1, b, 1]).random() for b in range(5)]
    assert len(set(drawn)) == 5


def test_the_set_is_not_changed():
    set_ = make()
    for x, _ in Loader(set_, 5, shuffle=False, augment=build(SPEC)).epoch(0):
        x[:] = -1
    assert np.array_equal(set_.images, make().images)


def test_one_batch_is_prepared_ahead_in_a_thread():
    made = []
    loader = Loader(make(), 5, augment=lambda x, rng: made.append(threading.current_thread()) or x)
    batches = loader.epoch(0)
    assert made == []
    next(batches)
    until = time.monotonic() + 10
    while len(made) < 2 and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(made) == 2 and threading.main_thread() not in made
    assert len(list(batches)) == 4 and len(made) == 5


def test_what_goes_wrong_in_the_thread_reaches_the_caller():
    def fail(x, rng):
        if fail.calls == 2:
            raise RuntimeError("no such picture")
        fail.calls += 1
        return x

    fail.calls = 0
    got = 0
    with pytest.raises(RuntimeError, match="no such picture"):
        for _ in Loader(make(), 5, augment=fail).epoch(0):
            got += 1
    assert got == 2 and threads() == []


def test_no_thread_outlives_its_iterator():
    batches = Loader(make(), 5).epoch(0)
    next(batches)
    assert len(threads()) == 1
    batches.close()
    assert threads() == []
    for _ in Loader(make(), 5).epoch(0):
        break
    assert threads() == []
    list(Loader(make(), 5).epoch(0))
    assert threads() == []


def test_a_seed_has_up_to_64_bits():
    orders = [
        [x[:, 0, 0, 0].tolist() for x, _ in Loader(make(), 5, seed=seed).epoch(0)]
        for seed in (1, 2**31, 2**63, 2**64 - 1)
    ]
    assert all(order not in orders[:place] for place, order in enumerate(orders))
    last = [x[:, 0, 0, 0].tolist() for x, _ in Loader(make(), 5, seed=np.uint64(2**64 - 1)).epoch(0)]
    assert last == orders[-1]


def test_a_loader_itself_says_that_it_gives_epochs():
    with pytest.raises(ConfigError, match=r"one epoch: for x, y in loader.epoch\(0\)"):
        for _ in Loader(make(), 5):
            pass


def test_bad_options_are_refused_at_once():
    for size in (0, -1):
        with pytest.raises(ConfigError, match=f"batch size must be a whole number of at least 1, not {size}"):
            Loader(make(), size)
    with pytest.raises(ConfigError, match="seed must be a whole number of at least 0, not -1"):
        Loader(make(), 5, seed=-1)
    with pytest.raises(ConfigError, match=f"seed is {2**64}; it may be {2**64 - 1} at most"):
        Loader(make(), 5, seed=2**64)
    with pytest.raises(ConfigError, match="22 training pictures, fewer than .* 23: .* Use batch_size=11"):
        Loader(make(), 23, drop_last=True)
    for epoch, start in ((-1, 0), (0, -1), (0, 6)):
        with pytest.raises(ConfigError, match=f"no batch {start} in epoch {epoch}"):
            Loader(make(), 5).epoch(epoch, start)
