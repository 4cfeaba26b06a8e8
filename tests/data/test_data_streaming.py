"""Streams: pictures that are decoded when asked for are those in memory; batches do not depend on threads."""

import io
import os
import tarfile
import threading
import time

import numpy as np
import pytest
from packing import write, zipped
from PIL import Image

from minires import backend, data
from minires.data import (
    Loader,
    Normalize,
    Stream,
    augment,
    build,
    opening,
    pictures,
    pixel_cache,
    streaming,
)
from minires.errors import ConfigError, DataError, ShapeError

STEPS = ["crop", ["shift", {"pixels": 2}], "flip", ["jitter", {}], "pca_colour"]


def jpeg(seed, kind="JPEG"):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    side = (int(rng.integers(40, 90)), int(rng.integers(40, 90)))
    Image.fromarray(small).resize(side, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


FILES = {f"{name}/{i:02}.jpg": jpeg(100 * k + i) for k, name in enumerate("ab") for i in range(20)}


def tarred(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "set", FILES)


@pytest.fixture
def threads():
    before = backend.threads()
    yield backend.set_threads
    backend.set_threads(before)


def running():
    return [t for t in threading.enumerate() if t.name.startswith("minires-loader")]


def batches(*given, epoch=2, start=0, **options):
    return list(Loader(*given, **options).epoch(epoch, start))


def same(left, right):
    return len(left) == len(right) and all(
        np.array_equal(x, u) and np.array_equal(y, v) for (x, y), (u, v) in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("form", ["folder", "zip", "deflated zip", "tar", "tar.gz"])
def test_a_stream_has_the_pictures_labels_and_names_that_memory_has(tmp_path, form):
    path = tmp_path / f"set.{form.split()[-1]}"
    if form == "folder":
        write(path, FILES)
    elif form.endswith("zip"):
        zipped(path, FILES)
    else:
        tarred(path, FILES, "w:gz" if form.endswith("gz") else "w")
    held, streamed = (data.load(path, size=16, seed=3, stream=stream) for stream in (False, True))
    for part in ("train", "val", "test"):
        one, other = getattr(held, part), getattr(streamed, part)
        assert isinstance(one.images, np.ndarray) and isinstance(other.images, Stream)
        assert one.names == other.names and one.classes == other.classes
        assert np.array_equal(one.labels, other.labels) and np.array_equal(one.images, other.images[:])
    assert held.source == streamed.source


def test_an_index_is_a_place_a_slice_or_a_list_of_places(root):
    held, images = (data.load(root, size=12, stream=stream).train.images for stream in (False, True))
    assert images.shape == held.shape and images.dtype == held.dtype and images.ndim == 4
    assert len(images) == len(held)
    for key in (3, -1, np.int64(2), slice(2, 9, 3), slice(None, None, -1), [4, 1, 1], np.array([0, -2])):
        assert np.array_equal(images[key], held[key]), key
    mask = np.arange(len(held)) % 3 == 0
    assert np.array_equal(images[mask], held[mask]) and np.array_equal(images[2:5, 0], held[2:5, 0])
    assert np.array_equal(np.stack(list(images)), held) and np.array_equal(np.asarray(images), held)
    assert images[[]].shape == images[0:0].shape == (0, 12, 12, 3)
    for wrong in (len(held), [0, len(held)]):
        with pytest.raises(IndexError):
            images[wrong]
    for wrong in (..., None, [[0]], 1.5, ["a"]):
        with pytest.raises(ShapeError, match="by a place, a slice or a list of places"):
            images[wrong]


def test_taking_joining_and_numbering_anew_decode_nothing(root, monkeypatch):
    held, streamed = (data.load(root, size=12, stream=stream) for stream in (False, True))
    monkeypatch.setattr(streaming, "decode", None)

    def changed(splits):
        both = splits.train.join(splits.val)
        return both.take(range(0, len(both), 2)).with_classes(("b", "c", "a")).split(0.5, seed=1)[1]

    lazy = changed(streamed)
    monkeypatch.undo()
    expected = changed(held)
    assert isinstance(lazy.images, Stream) and lazy.names == expected.names
    assert np.array_equal(lazy.images[:], expected.images) and np.array_equal(lazy.labels, expected.labels)


def test_parts_of_different_folders_are_joined(tmp_path):
    names = [f"{part}/{name}" for part in ("train", "val", "test") for name in FILES]
    path = write(tmp_path / "set", {name: jpeg(i) for i, name in enumerate(names)})
    held, streamed = (data.load(path, size=12, stream=stream) for stream in (False, True))
    both = streamed.train.join(streamed.val)
    assert np.array_equal(both.images[:], held.train.join(held.val).images)
    assert np.array_equal(both.join(streamed.test).images[[0, 45, 90]],
                          held.train.join(held.val).join(held.test).images[[0, 45, 90]])  # fmt: skip
    with pytest.raises(DataError, match="cannot join pictures in memory and a stream; .* stream=True"):
        streamed.train.join(held.val)


def test_a_set_streams_by_itself_where_it_is_large(root, monkeypatch):
    assert isinstance(data.load(root, size=16).train.images, np.ndarray)
    monkeypatch.setattr(opening, "STREAM_FROM", 40 * 16 * 16 * 3 - 1)  # the whole set counts, not a part
    assert isinstance(data.load(root, size=16).test.images, Stream)
    assert isinstance(data.load(root, size=15).test.images, np.ndarray)
    assert isinstance(data.load_part(root, size=16).pictures.images, Stream)
    assert isinstance(data.load(root, size=16, stream=False).test.images, np.ndarray)
    monkeypatch.undo()
    monkeypatch.setattr(opening, "memory", lambda: 4 * (40 * 16 * 16 * 3 - 1))
    assert isinstance(data.load(root, size=16).test.images, Stream)


def test_all_parts_of_a_set_stream_or_none(tmp_path, monkeypatch):
    for part in ("train", "val", "test"):
        path = write(tmp_path / "set", {f"{part}/{name}": content for name, content in FILES.items()})
    monkeypatch.setattr(opening, "STREAM_FROM", 120 * 16 * 16 * 3 - 1)
    splits = data.load(path, size=16)
    assert all(isinstance(part.images, Stream) for part in (splits.train, splits.val, splits.test))
    assert isinstance(data.load_part(path, "val", size=16).pictures.images, Stream)
    monkeypatch.setattr(opening, "STREAM_FROM", 120 * 16 * 16 * 3)
    assert isinstance(data.load(path, size=16).train.images, np.ndarray)


def test_what_was_too_large_for_memory_streams_unless_memory_is_asked_for(root, monkeypatch):
    for room in (opening, pictures):
        monkeypatch.setattr(room, "memory", lambda: 20_000)
    assert data.load(root, size=16).train.images[:4].shape == (4, 16, 16, 3)
    with pytest.raises(DataError, match="40 pictures of 16 x 16 .*, or stream=True"):
        data.load(root, size=16, stream=False)
    with pytest.raises(DataError, match="26 pictures of 16 x 16 .* stream=True"):
        np.asarray(data.load(root, size=16).train.images)


def test_without_a_size_all_must_have_one(tmp_path):
    files = {f"{name}/{i}.png": jpeg(0, "PNG") for name in "ab" for i in range(9)}
    path = write(tmp_path / "set", files)
    held, streamed = (data.load(path, stream=stream) for stream in (False, True))
    assert np.array_equal(held.train.images, streamed.train.images[:])
    (path / "b" / "3.png").write_bytes(jpeg(1, "PNG"))
    whole = data.load_part(path, stream=True).pictures
    assert len(whole.images[:12]) == 12
    with pytest.raises(DataError, match=r"differ in size: a/0.png is \d+ x \d+, b/3.png is .* size=64"):
        whole.images[:]
    (path / "a" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 unreadable picture.*\n  a/0.png: .*the file is empty"):
        data.load(path, stream=True)


def test_a_set_that_is_no_files_is_not_streamed():
    for option in ({"stream": True}, {"draft": True}, {"cache": "pixels"}):
        with pytest.raises(ConfigError, match="hands: .* is for pictures in files.* stands in memory"):
            data.load("hands", size=8, **option)
    with pytest.raises(ConfigError, match="draft is for a stream"):
        data.load("hands", stream=False, draft=True)
    with pytest.raises(ConfigError, match="stream must be True or False, not 'yes'"):
        data.load("hands", stream="yes")
    with pytest.raises(ConfigError, match="cache"):
        data.load("hands", cache="packed")


@pytest.mark.parametrize("steps", [[], STEPS, [["scale_crop", {"shorter": [20, 40]}], "flip"], STEPS[1:]])
def test_batches_are_the_same_bits_with_any_number_of_threads_and_from_any_batch(root, threads, steps):
    train = data.load(root, size=16, stream=True).train
    options = {"seed": 5, "augment": build(steps), "normalize": Normalize((0.4,) * 3, (0.2,) * 3)}
    threads(1)
    whole = batches(train, 6, **options)
    assert [len(x) for x, _ in whole] == [6, 6, 6, 6, 2] and whole[0][0].dtype == np.float32
    for count in (2, 3):
        threads(count)
        assert same(whole, batches(train, 6, **options))
    for start in (1, 4, 5):
        assert same(whole[start:], batches(train, 6, start=start, **options))
    if steps:
        assert not same(whole[:1], batches(train, 6, **{**options, "seed": 6})[:1])


def test_a_picture_is_augmented_by_its_own_generator(root):
    train = data.load(root, size=16, stream=True).train
    steps, normalize = build(STEPS[1:]), Normalize((0.4,) * 3, (0.2,) * 3)
    found = batches(train, 6, seed=5, augment=steps, normalize=normalize, epoch=3)
    order = np.random.default_rng([5, 3]).permutation(len(train))
    for place, x, y in zip(order, np.concatenate([x for x, _ in found]),
                           np.concatenate([y for _, y in found]), strict=True):  # fmt: skip
        rng = np.random.default_rng([5, 3, place, 2])
        expected = normalize(steps(train.images[[place]], rng))[0]
        assert np.array_equal(x, expected) and y == train.labels[place]


def test_without_augmentation_a_stream_gives_the_batches_of_memory(root):
    held, streamed = (data.load(root, size=12, stream=stream).train for stream in (False, True))
    assert same(batches(held, 5, seed=2, drop_last=True), batches(streamed, 5, seed=2, drop_last=True))
    assert same(batches(held, 5, shuffle=False), batches(streamed, 5, shuffle=False))
    assert Normalize.of(held) == Normalize.of(streamed)


def test_a_picture_that_a_balanced_epoch_shows_again_is_augmented_anew(root, threads):
    train = data.load(root, size=12, stream=True).train
    few = train.take([*np.flatnonzero(train.labels == 0), np.flatnonzero(train.labels == 1)[0]])
    options = {"balanced": True, "augment": build([["jitter", {}]]), "seed": 4}
    whole = batches(few, 4, **options)
    threads(1)
    assert same(whole, batches(few, 4, **options)) and same(whole[2:], batches(few, 4, start=2, **options))
    x, y = (np.concatenate(arrays) for arrays in zip(*whole, strict=True))
    again = x[y == 1]
    assert len(again) == 7 and len({one.tobytes() for one in again}) == 7


def test_only_a_few_batches_are_prepared_ahead(root, threads):
    threads(2)
    train = data.load(root, size=12, stream=True).train.take(np.arange(1000) % 26)
    made = []
    loader = Loader(train, 10, augment=lambda x, rng: made.append(1) or x)
    prepared = loader.epoch(0)
    assert made == []
    next(prepared)
    until = time.monotonic() + 10
    most = 10 * (2 + streaming.ahead.enough(10, 2))
    while len(made) < most and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(0.05)
    assert len(made) == most <= 60
    prepared.close()
    assert running() == []


def test_a_picture_that_cannot_be_read_is_named_at_its_batch(root):
    train = data.load(root, size=12, stream=True).train
    order = np.random.default_rng([0, 0]).permutation(len(train))
    spoilt = {place: train.names[order[place]] for place in (13, 14)}
    (root / spoilt[13]).write_bytes(b"<html>")
    (root / spoilt[14]).unlink()
    got = []
    with pytest.raises(data.Unreadable) as error:
        for x, y in Loader(train, 6).epoch(0):
            got.append((x, y))
    assert len(got) == 2 and running() == []
    assert set(error.value.names) == {*spoilt.values()}
    assert "2 unreadable pictures; mend or remove them" in str(error.value)
    assert "web page" in str(error.value) and "no such file" in str(error.value)
    for place, name in spoilt.items():
        (root / name).write_bytes(FILES[name])
        assert place in (13, 14)
    rest = batches(train, 6, epoch=0, start=2)
    assert len(got) + len(rest) == 5 and same(batches(train, 6, epoch=0), got + rest)


def test_an_error_of_an_augmentation_reaches_the_caller(root):
    train = data.load(root, size=12, stream=True).train

    def fail(x, rng):
        raise RuntimeError("no such colour")

    with pytest.raises(RuntimeError, match="no such colour"):
        batches(train, 5, augment=fail)
    assert running() == []


@pytest.mark.usefixtures("registries_as_before")
def test_a_step_of_ones_own_may_take_the_picture_as_it_is(root):
    @augment.register("corner")
    class Corner:
        def __init__(self, side=0):
            self.side = side

        def __call__(self, x, rng):
            raise AssertionError("not for a stream")

        def from_picture(self, image, size, rng):
            side = self.side or size
            return np.asarray(image.crop((0, 0, side, side)))

    train = data.load(root, size=12, stream=True).train
    x, _ = batches(train, 40, augment=build(["corner", "pca_colour"]), shuffle=False)[0]
    assert x.shape == (26, 12, 12, 3)
    x, _ = batches(train, 40, augment=build(["corner"]), shuffle=False)[0]
    whole = data.decode(FILES[train.names[3]])
    assert np.array_equal(x[3], Normalize.none()(whole[None, :12, :12])[0])
    with pytest.raises(ConfigError, match=r"Corner must give uint8 \(12, 12, 3\), not uint8 \(13, 13, 3\)"):
        batches(train, 5, augment=build([["corner", {"side": 13}]]))


def test_steps_that_need_the_file_are_refused_for_pictures_in_memory(root):
    train = data.load(root, size=12).train
    steps = build([["scale_crop", {"shorter": 20}]])
    with pytest.raises(ConfigError, match="as they are in their files.*stream=True"):
        Loader(train, 5, augment=steps)
    with pytest.raises(ConfigError, match="stream=True"):
        steps(train.images[:2], np.random.default_rng(0))
    assert len(batches(train, 5, augment=build(["crop"]))) == 6  # which has a way for both
    streamed = data.load(root, size=32, stream=True).train
    with pytest.raises(ConfigError, match="no square of 32 pixels .* shorter side is 20"):
        Loader(streamed, 5, augment=steps)


def test_the_fingerprint_tells_names_sizes_times_and_decoding(root):
    def known(**options):
        return data.load(root, **{"size": 12, "stream": True, **options}).train.images.fingerprint()

    first = known()
    assert known() == first and known(size=13) != first and known(draft=True) != first
    name = data.load(root, size=12, stream=True).train.names[4]
    found = os.stat(root / name)
    os.utime(root / name, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    assert known() != first
    images = data.load(root, size=12, stream=True).train.images
    without = images.fingerprint(without=frozenset({name}))
    (root / name).write_bytes(FILES[name] + b"x")
    assert images.fingerprint(without=frozenset({name})) == without != images.fingerprint()


def test_a_draft_reads_less_where_twice_the_pixels_are_left(tmp_path):
    wide = io.BytesIO()
    ramp = Image.linear_gradient("L").resize((800, 640)).convert("RGB")
    ramp.save(wide, "JPEG", quality=95)
    read = pictures.picture(wide.getvalue(), least=80, draft=True)
    assert read.size == (200, 160)
    assert pictures.picture(wide.getvalue(), least=81, draft=True).size == (400, 320)
    assert pictures.picture(wide.getvalue(), least=80).size == (800, 640)
    plain, quick = (data.decode(wide.getvalue(), size=80, draft=draft).astype(int) for draft in (False, True))
    assert plain.shape == quick.shape == (80, 80, 3) and 0 < np.abs(plain - quick).max() < 12


# ---------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def cached(root, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda **options: data.load(root, **{"size": 12, "cache": "pixels", **options})


def test_a_cache_holds_the_same_pixels_and_is_used_again(root, cached, monkeypatch, tmp_path):
    plain = data.load(root, size=12, stream=True)
    splits = cached()
    for part in ("train", "val", "test"):
        assert np.array_equal(getattr(splits, part).images[:], getattr(plain, part).images[:])
    assert [path.suffix for path in (tmp_path / "cache/minires/pixels").iterdir()] == [".uint8"]
    monkeypatch.setattr(streaming, "decode", None)
    assert np.array_equal(cached().train.images[:], splits.train.images[:])
    both = cached().train.join(cached().val)
    assert both.images[:].shape == (32, 12, 12, 3)
    augmented = build(["flip", "pca_colour"])
    assert same(batches(cached().train, 5, augment=augmented), batches(splits.train, 5, augment=augmented))


def test_a_cache_of_other_files_is_made_anew_in_its_place(root, cached, monkeypatch, tmp_path):
    cached()
    folder = tmp_path / "cache/minires/pixels"
    (before,) = folder.iterdir()
    os.utime(before, (1, 1))
    (root / "a/03.jpg").write_bytes(jpeg(999))
    assert np.array_equal(cached().train.images[:], data.load(root, size=12).train.images)
    (damaged,) = folder.iterdir()
    assert damaged != before
    os.utime(damaged, (1, 1))
    monkeypatch.setattr(pixel_cache.PIL, "__version__", "1.0")
    monkeypatch.setattr(streaming, "decode", lambda *_, **__: np.zeros((12, 12, 3), np.uint8))
    assert not cached().train.images[:].any()
    (damaged,) = folder.glob("*.uint8")
    damaged.write_bytes(b"short")
    assert len(cached().train.images[:]) == 26
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(cached(size=13).train) == 26 and len(list(folder.iterdir())) == 2


def test_of_two_that_fill_a_cache_each_reads_what_it_has_written(root, cached, monkeypatch):
    """While one writes, the pictures change and another comes to its end."""
    write, expected, other = pixel_cache._write, data.load(root, size=12).train.images, []

    def meanwhile(stream, path):
        monkeypatch.setattr(pixel_cache, "_write", write)
        write(stream, path)
        before = {name: (root / name).read_bytes() for name in ("a/03.jpg", "b/19.jpg")}
        times = {name: os.stat(root / name).st_mtime_ns for name in before}
        for name in before:
            (root / name).write_bytes(jpeg(999))
        other.append((cached().train.images, data.load(root, size=12).train.images))
        for name, content in before.items():
            (root / name).write_bytes(content)
            os.utime(root / name, ns=(times[name], times[name]))

    monkeypatch.setattr(pixel_cache, "_write", meanwhile)
    one = cached().train.images
    (held, wanted), = other
    assert np.array_equal(one[:], expected) and np.array_equal(held[:], wanted)
    assert not np.array_equal(expected, wanted)


def test_a_cache_names_every_unreadable_picture_and_leaves_nothing(root, cached, tmp_path):
    for name in ("a/03.jpg", "b/19.jpg"):
        (root / name).write_bytes(b"")
    with pytest.raises(DataError, match="2 unreadable pictures.*\n  a/03.jpg: .*\n  b/19.jpg"):
        cached()
    assert list((tmp_path / "cache/minires/pixels").iterdir()) == []


def test_what_a_killed_write_of_a_cache_left_is_removed_and_that_of_another_run_is_not(cached, tmp_path):
    cached()
    folder = tmp_path / "cache/minires/pixels"
    (pixels,) = folder.glob("*.uint8")
    pixels.unlink()
    old, new = (folder / f".{pixels.name}.{name}.tmp" for name in ("aaaaaaaa", "bbbbbbbb"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    cached()
    assert not old.exists() and new.exists() and pixels.exists()


def test_a_full_disk_and_a_step_that_needs_the_file_are_said(cached, monkeypatch):
    train = cached().train
    with pytest.raises(ConfigError, match="cache='pixels' keeps them at one size; leave the cache out"):
        Loader(train, 5, augment=build([["scale_crop", {"shorter": 20}]]))
    usage = pixel_cache.shutil.disk_usage
    monkeypatch.setattr(pixel_cache.shutil, "disk_usage", lambda path: usage(path)._replace(free=100))
    with pytest.raises(DataError, match="the cache of 40 pictures needs .* GB are free; make room"):
        cached(size=14)
