"""keras_folder.py: the folder it writes, twins, and seeds that are measured in pieces."""

import json
import sys

import keras_folder
import numpy as np
import readme

from minires import data
from minires.data import Dataset, Splits


def made(count, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    names = tuple(map(str, range(count)))
    return Dataset(rng.integers(0, 256, (count, 6, 6, 3), np.uint8), labels, ("a", "b"), names, "made")


def test_the_command_is_that_of_the_guide():
    guide = (readme.ROOT / "tutorials" / "guide" / "commands.md").read_text(encoding="utf-8")
    assert f"```sh\n{keras_folder.COMMAND}\n```" in guide


def test_the_folder_holds_the_pictures_in_the_folders_of_their_classes(tmp_path):
    whole = made(30)
    keras_folder.write(whole, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    read = data.load_part(tmp_path, "all").pictures
    order = [int(name.partition("/")[2].removesuffix(".png")) for name in read.names]
    assert sorted(order) == list(range(30)) and read.classes == whole.classes
    assert np.array_equal(read.images, whole.images[order])
    assert np.array_equal(read.labels, whole.labels[order])


def test_twins_of_the_other_parts_are_left_out():
    train, val, test = made(8, 0), made(4, 1), made(6, 2)
    mixed = test.join(train.take([3])).join(val.take([0, 1])).join(test.take([5]))
    assert keras_folder.without_twins(Splits(train, val, mixed, "")).names == (*test.names, test.names[5])


def test_seeds_are_saved_one_by_one_and_measured_in_pieces(tmp_path, monkeypatch):
    out = tmp_path / "result.json"
    known = []  # how many seeds were in the file when one was measured

    def measure(command, beside, seed):
        assert len(list((beside / keras_folder.FOLDER).rglob("*.png"))) == 30
        known.append(len(json.loads(out.read_text())["seeds"]) if out.exists() else 0)
        (beside / "runs" / str(seed)).mkdir(parents=True)
        (beside / "runs" / str(seed) / "curves.png").write_text(f"curves of {seed}")
        return dict.fromkeys(keras_folder.MEDIANS, seed / 8)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["keras_folder.py", "--out", str(out), *words])
        keras_folder.main()
        return json.loads(out.read_text())

    monkeypatch.setattr(keras_folder, "measure", measure)
    monkeypatch.setattr(data, "load", lambda name: Splits(made(18), made(6), made(6), name))
    first = run("--seeds", "1", "4")
    assert first["what"] == keras_folder.COMMAND and first["machine"]["commit"] and known == [0, 1]
    second = run("--seeds", "2")
    assert [*second["seeds"]] == ["1", "4", "2"] and known == [0, 1, 2]
    assert second["median"] == dict.fromkeys(keras_folder.MEDIANS, 2 / 8)
    assert (tmp_path / "result_curves.png").read_text() == "curves of 1"
    assert [*run("--seeds", "3", "--epochs", "1")["seeds"]] == ["3"]  # another command


def test_the_guide_shows_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    parts = {"train": 768, "val": 192, "test": 240}
    seed = {"pictures": parts, "parameters": 23531654, "test_accuracy": 0.975}
    machine = {"date": "2026-01-02", "processor": "P", "cores": 2, "versions": {}}
    median = {"test_accuracy": 0.95, "accuracy_without_twins": 0.94, "seconds": 330}
    seeds = {"0": seed, "1": {**seed, "test_accuracy": 0.9}}
    report = {"what": "minires train", "machine": machine, "seeds": seeds, "median": median}
    (tmp_path / "keras_folder.json").write_text(json.dumps(report))
    table = readme.keras_folder()
    shares, pictures = "**95.0%** (97.5%, 90.0%)", "768 train, 192 val, 240 test"
    for told in (shares, "94.0%", "5.5 min", "23,531,654", pictures):
        assert told in table
