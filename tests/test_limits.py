"""Files of others are read in a process of its own, which may take so much time and memory and no more."""

import io
import os
import socket
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import readers

from minires import data, hdf5, limits, weights
from minires.data import archives, cifar, fetch, opening, pictures, shards, tree
from minires.errors import CheckpointError, DataError, MiniresError
from minires.local_page import connections
from minires.play import decoder, server
from minires.train import load_model, model_file, run_folder, state
from minires.weights import classes, fetching
from minires.weights.keras import config as keras_config
from minires.weights.keras import files as keras_files
from minires.weights.torch import beside, containers


@pytest.fixture
def path(tmp_path):
    (tmp_path / "some.file").write_bytes(b"abc")
    return tmp_path / "some.file"


def test_arrays_and_what_json_can_hold_come_back_as_they_were(path):
    arrays, info = limits.apart(readers.numbers, path, 3)
    assert list(arrays) == ["bytes", "none", "one"] and info == {"n": [3]}
    assert arrays["bytes"].tobytes() == b"abc" and arrays["bytes"].flags.writeable
    assert arrays["none"].shape == (0, 3) and arrays["none"].dtype == np.float32
    assert arrays["one"].shape == () and arrays["one"] == 1.5


@pytest.mark.parametrize(
    "read",
    [data.load, data.load_part, data.survey, data.pictures_at, load_model, weights.read,
     lambda name: weights.import_weights(name, "resnet18", "out.safetensors")],
)  # fmt: skip
def test_a_name_that_no_file_can_have_is_refused_in_words(read):
    with pytest.raises(MiniresError, match="a: File name too long. Choose a shorter name"):
        read("a" * 300)


def test_an_error_of_the_reader_is_raised_here(path):
    with pytest.raises(DataError, match="some.file: not like this"):
        limits.apart(readers.refused, path, error=CheckpointError)


def test_a_reader_that_loops_is_stopped_with_a_sentence(path, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    with pytest.raises(CheckpointError, match=r"some\.file is damaged: reading it takes more than 0 seconds"):
        limits.apart(readers.looping, path, error=CheckpointError)


@pytest.mark.parametrize("reader", [readers.crashing, readers.mistaken])
def test_a_reader_that_crashes_is_an_error_with_the_name_of_the_file(path, reader):
    with pytest.raises(CheckpointError, match=r"some\.file is damaged: the library that reads it gave up"):
        limits.apart(reader, path, error=CheckpointError)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited on Linux")
def test_a_reader_gets_twice_what_its_file_may_unfold_to_and_no_more(path):
    with pytest.raises(CheckpointError, match=r"some\.file: reading it takes more than 256 MB of memory"):
        limits.apart(readers.hungry, path, error=CheckpointError)


def test_more_than_a_file_may_unfold_to_is_not_taken_even_where_memory_is_not_limited(path, monkeypatch):
    monkeypatch.setattr(limits, "UNFOLDED", 2**28)  # of the limit of memory, which the other process is told
    arrays, _ = limits.apart(readers.larger_than_allowed, path)
    assert arrays["zeros"].nbytes == 2**28 + 2**10
    receive = limits._receive
    monkeypatch.setattr(limits, "_receive", lambda source, error, *, most: receive(source, error, most=2**28))
    with pytest.raises(CheckpointError, match=r"damaged: it unfolds to \[268436480\] of uint8, .* too much"):
        limits.apart(readers.larger_than_allowed, path, error=CheckpointError)


def test_only_numbers_are_taken_from_the_other_process(path):
    with pytest.raises(CheckpointError, match="damaged: it unfolds to .* of <U1, which is no number"):
        limits.apart(readers.not_numbers, path, error=CheckpointError)


@pytest.mark.parametrize(
    "head",
    [
        "{", "[]", "null", "\udcff", "{}", "[" * 10**5,
        '{"failed": 3}', '{"failed": ["a"]}', '{"failed": null}',
        '{"failed": null, "arrays": 3, "info": 0}', '{"failed": null, "arrays": [3], "info": 0}',
        '{"failed": null, "arrays": []}',
        *(
            f'{{"failed": null, "arrays": [["a", {dtype}, {shape}]], "info": 0}}'
            for dtype, shape in (
                ('"<f4"', "[-1]"), ('"<f4"', "[-1, -4]"), ('"<f4"', "[0, -4]"), ('"<f4"', '["a"]'),
                ('"<f4"', "3"), ('"<f4"', "[0.5]"), ('"<f4"', "[true]"),
                ('"<f4"', "[4294967296, 4294967296]"),
                ('"<f4"', "[0, 4294967296, 4294967296]"), ('"<f4"', "[1e400]"), ('"<f4"', f"[{10**30}]"),
                ('"<f4"', str([1] * 99)), ('"?!"', "[1]"), ('"O"', "[1]"), ('"f4,"', "[1]"),
                ('"(2,2)f4"', "[1]"),
                ("3", "[1]"), ("null", "[1]"), ('"V4"', "[1]"), ('"<U1"', "[1]"),
            )
        ),
    ],
)  # fmt: skip
def test_a_head_that_lies_is_an_error_with_the_name_of_the_file(path, head, monkeypatch):
    monkeypatch.setattr(limits, "process", lambda *_, **__: Liar(head))
    monkeypatch.setattr(limits, "finish", lambda child: None)
    with pytest.raises(CheckpointError, match=r"some\.file is damaged: it unfolds to "):
        limits.apart(readers.numbers, path, error=CheckpointError)


class Liar:
    """A process that has sent ``head``."""

    def __init__(self, head):
        content = head.encode("utf-8", "surrogateescape")
        self.stdout = io.BytesIO(len(content).to_bytes(8, "little") + content + bytes(64))

    def kill(self):
        pass


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to("nowhere")
    for name, kind in {
        "folder": "this is a folder, not a file", "pipe": "this is a pipe, not a file",
        "socket": "this is a socket, not a file", "link": "no such file", "missing": "no such file",
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=f"{name}: {kind}"):
            limits.apart(readers.numbers, tmp_path / name, error=DataError)
    with pytest.raises(DataError, match="this is a device, not a file"):
        limits.regular_file("/dev/zero", DataError)
    with pytest.raises(DataError, match="cannot be read"):
        limits.regular_file("a\0b", DataError)


@pytest.fixture
def h5(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.ones(3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["g/x"] = np.arange(6.0).reshape(2, 3)
        file["soft"] = h5py.SoftLink("/g/x")
        file["outside"] = h5py.ExternalLink("other.h5", "/x")
        file["g/again"] = file["g"]  # a group that contains itself
        file["text"] = "abc"
        file["nothing"] = h5py.Empty("f4")
        file.create_dataset("not stored", (30000, 30000), "f4", chunks=(100, 100))
        file.create_dataset("packed", data=np.ones(1000), compression="gzip", shuffle=True, fletcher32=True)
        file.create_dataset("quick", data=np.ones(1000), compression="lzf")
        file.create_dataset("elsewhere", (3,), "f8", external=[("raw", 0, 24)])
        layout = h5py.VirtualLayout((3,), "f8")
        layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
        file.create_virtual_dataset("virtual", layout)
        file["names"], file["numbered"] = np.array([b"cat", b"\xff", "手".encode()]), [3, 4]
    with h5py.File(tmp_path / "a.h5", "r") as file:
        yield file


def test_names_are_text_or_numbers(h5):
    assert hdf5.texts(h5, "names") == ["cat", "\\xff", "手"] and hdf5.texts(h5, "numbered") == ["3", "4"]
    for path in ("g", "g/x", "soft", "outside", "nothing"):
        with pytest.raises(CheckpointError, match="must be names|link to elsewhere"):
            hdf5.texts(h5, path)


def test_arrays_that_stand_in_the_file_are_read(h5):
    assert hdf5.array(h5, "g/x", kinds="f", most=48).tolist() == [[0, 1, 2], [3, 4, 5]]
    for name in ("packed", "quick"):
        assert hdf5.array(h5, name, kinds="f", most=8000).sum() == 1000


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("soft", "a link to elsewhere"),
        ("outside", "a link to elsewhere"),
        ("elsewhere", "in another file"),
        ("virtual", "in another file"),
        ("text", "has the type object, not floating-point or whole numbers"),
        ("nothing", "not floating-point or whole numbers"),
        ("not stored", r"needs 3,600,000,000 bytes; the limit is 1,000"),
        ("g", "is a group and should be an array"),
        ("g/x/y", "should be in this file but is not"),
        ("h", "should be in this file but is not"),
        ("", "should be in this file but is not"),
    ],
)
def test_what_an_hdf5_file_only_refers_to_is_refused(h5, path, said):
    with pytest.raises(CheckpointError, match=said):
        hdf5.array(h5, path, kinds="fi", most=1000)


def test_an_array_of_which_nothing_is_stored_is_refused_within_the_limit(h5):
    with pytest.raises(CheckpointError, match=r"needs 3600000000 bytes, the file has 0"):
        hdf5.array(h5, "not stored", kinds="f", most=2**40)


def test_the_guide_states_the_limits_that_there_are():
    mib, million = 2**20, 10**6
    limited = [
        (pictures.MAX_PIXELS, "{:,} pixels; a JPEG"),
        (pictures.MAX_PIXELS * pictures.REDUCED, "resized, {:,} (progressive"),
        (pictures.MAX_PIXELS * pictures.REDUCED_PROGRESSIVE, "progressive: {:,}, and"),
        (pictures.MAX_SCANS, "and {} scans"),
        (pictures.MAX_PIXELS_UNSIZED, "without a size for all, {:,};"),
        (opening.STREAM_FROM // 2**30, "in memory {} GiB of pixels, or a quarter"),
        (shards.MOST, "{:,} in a pattern"),
        (shards.LONGEST // mib, "class names of {} MiB"),
        (tree.MAX_FILE_BYTES // mib, "a file of {} MiB"),
        (tree.MAX_DEPTH, "folders {} deep"),
        (archives.MAX_MEMBERS, "{:,} files"),
        (archives.UNFOLDED // 2**30, "unfolded {} GiB, or"),
        (archives.TIMES, "or {} times"),
        (cifar.MOST, "{:,} pictures each"),
        (int(limits.SECONDS), "{} seconds, and one more"),
        (limits.BYTES_PER_SECOND // million, "every {} MB"),
        (limits.UNFOLDED // mib, "unfolded {} MiB and"),
        (limits.TIMES, "and {} times its own size"),
        (keras_files.MOST_TEXT // mib, "{} MiB of text"),
        (keras_files.MOST_OBJECTS, "{:,} objects"),
        (keras_files.DEEPEST, "{} models in models"),
        (keras_config.MOST_CALLS, "{:,} layers"),
        (keras_config.LARGEST, "pictures of {:,} pixels a side |"),
        (containers.DEEPEST, "dicts {} deep"),
        (limits.LONGEST_HEAD // mib, "{} MiB; 10 MB"),
        (beside.LONGEST // million, "64 MiB; {} MB"),
        (classes.LONGEST // million, "64 MiB; {} MB"),
        (state.WIDEST, "pictures of {:,} pixels a side;"),
        (model_file.ROOM, "its file and {:,} numbers"),
        (run_folder.LONGEST_JSON // mib, "a run folder | {} MiB"),
        (server.LARGEST // million, "uploads of {} MB"),
        (int(decoder.SECONDS), "{} seconds and"),
        (decoder.MEMORY // 2**30, "and {} GiB (on Linux)"),
        (int(connections.PATIENCE), "{} seconds for a request"),
        (connections.CONNECTIONS, "{} connections"),
        (connections.WORKING, "{} requests at a time"),
        (fetch.MAX_ARCHIVE_BYTES // mib, "--download` | {} MiB"),
        (fetching.ROOM // mib, "--fetch` | {} MiB more"),
        (fetching.MOST // 2**30, "and {} GiB where nobody says"),
    ]
    text = (Path(__file__).parents[1] / "tutorials/guide/limits.md").read_text(encoding="utf-8")
    missing = [words.format(value) for value, words in limited if words.format(value) not in text]
    assert not missing and pictures.SHARE == 0.5 and opening.SHARE == 4
