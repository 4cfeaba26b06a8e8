"""Several runs beside each other: figures, what differs, curves, and where their models disagree."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from command_line import call
from PIL import Image
from quick_runs import draw_nothing

from minires import cli, data, models, nn
from minires.errors import CheckpointError, ConfigError, DataError
from minires.inspect import runs_drawing
from minires.inspect.disagreements import disagreement
from minires.inspect.runs import compare_runs
from minires.train import Config, load_model, predict, save_model
from minires.train.continuing import CONFIG, METRICS, MODEL, SUMMARY

COLOURS = ("blue", "green", "red")


class Tiny(nn.Module):
    def __init__(self, *, classes, rng, size=12):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, rng=rng)
        self.norm = nn.BatchNorm2d(4, momentum=0.5, relu=True)
        self.pool = nn.GlobalAvgPool2d()
        self.fc = nn.Linear(4, classes, rng=rng)

    def forward(self, x):
        return self.fc(self.pool(self.norm(self.conv(x))))


def make_pictures(folder, names=COLOURS, seed=0):
    """Pictures so noisy that two models do not see the same."""
    rng = np.random.default_rng(seed)
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            picture = rng.integers(0, 200, (24, 24, 3))
            picture[..., 2 - k] += rng.integers(0, 25)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs that differ in the seed alone, and one with another rate, more epochs and size."""
    place = tmp_path_factory.mktemp("runs")
    make_pictures(place / "colours")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", models.Entry(Tiny, size=12, classes=3))
        patch.chdir(place)
        draw_nothing(patch)
        common = ["train", "--data", "colours", "--model", "tiny", "--batch-size", "8", "--json"]
        common += ["--train-on", "train"]
        for out, *more in (("a", "--seed", "0"), ("b", "--seed", "7"), ("c", "--lr", "0.05", "--size", "16")):
            epochs = "4" if out == "c" else "3"
            assert cli.main([*common, "--epochs", epochs, *more, "--out", out]) == 0
    return place


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A folder to work in with copies of these runs; the model they are of is known."""
    monkeypatch.setitem(models.MODELS, "tiny", models.Entry(Tiny, size=12, classes=3))
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        shutil.copytree(trained / name, tmp_path / name)
    return tmp_path


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def unfinished(folder, epochs=2):
    """What stands in the folder of a run that was stopped after some epochs."""
    (folder / SUMMARY).unlink()
    (folder / MODEL).unlink()
    table = (folder / METRICS).read_text().splitlines(keepends=True)
    (folder / METRICS).write_text("".join(table[: epochs + 1]))


def test_runs_that_differ_in_the_seed_alone_have_a_mean_and_a_spread(place):
    compared = compare_runs(["a", place / "b", "c"])
    assert [run.label for run in compared.runs] == ["a", "b", "c"]
    assert [[run.label for run in group.runs] for group in compared.groups] == [["a", "b"], ["c"]]
    pair, alone = compared.groups
    said = [json.loads((place / name / SUMMARY).read_text()) for name in "ab"]
    for figure, name in (("accuracy", "test_accuracy"), ("loss", "test_loss"), ("seconds", "seconds")):
        values = [one[name] for one in said]
        assert getattr(pair, figure) == (statistics.fmean(values), statistics.stdev(values))
        assert getattr(alone, figure)[1] is None
    assert pair.seeds == (0, 7)
    rate = Config.of("default").optimizer["lr"]
    assert compared.differences == {
        "seed": (0, 7, 0), "epochs": (3, 3, 4), "size": (None, None, 16),
        "optimizer.lr": (rate, rate, 0.05),
    }  # fmt: skip
    assert compared.runs[0].rows[2]["epoch"] == 3 and compared.runs[2].epochs == 4


def test_what_may_change_when_a_run_goes_on_parts_no_group(place):
    change(place / "b" / CONFIG, keep="all", checkpoint_every=7, seed=0)
    compared = compare_runs(["a", "b"])
    assert len(compared.groups) == 1 and compared.groups[0].seeds == (0,)
    assert compared.differences == {"checkpoint_every": (200, 7), "keep": ("none", "all")}
    assert compared.groups[0].accuracy[1] is None, "one seed has no spread"
    change(place / "b" / CONFIG, batch_size=9)
    assert len(compare_runs(["a", "b"]).groups) == 2


def test_a_seed_that_was_run_twice_counts_once(place, capsys):
    change(place / "b" / CONFIG, seed=0)
    assert "mean and spread" not in call(capsys, "compare", "a", "b", "--no-pictures")[1]
    unfinished(place / "a")
    (group,) = compare_runs(["a", "b"]).groups
    assert group.accuracy == (group.runs[1].accuracy, None) and group.runs[1].label == "b"


def test_runs_that_are_not_finished_take_part_with_their_curves(place):
    unfinished(place / "b")
    compared = compare_runs(["a", "b", "c"])
    stopped = compared.runs[1]
    assert (stopped.finished, stopped.epochs, stopped.accuracy, stopped.loss) == (False, 2, None, None)
    assert stopped.seconds == pytest.approx(sum(row["seconds"] for row in stopped.rows))
    assert compared.groups[0].accuracy == (compared.runs[0].accuracy, None)
    asked = disagreement(compared.runs)
    assert [run.label for run in asked.runs] == ["a", "c"] and "not finished, and not asked: b" in asked.notes
    (place / "b" / METRICS).unlink()  # stopped in its first epoch
    assert compare_runs(["a", "b"]).runs[1].seconds is None
    with pytest.raises(ConfigError, match="1 of 2 runs are finished"):
        disagreement(compare_runs(["a", "b"]).runs)
    compare_runs(["a", "b"]).draw("curves.png")


def test_a_run_of_an_older_version_is_read(place):
    content = json.loads((place / "a" / CONFIG).read_text())
    for newer in ("keep", "plan", "precision", "start_from", "freeze", "drop_last"):
        del content[newer]
    (place / "a" / CONFIG).write_text(json.dumps(content))
    summary = json.loads((place / "a" / SUMMARY).read_text())
    for newer in ("dataset", "seconds", "versions"):
        del summary[newer]
    (place / "a" / SUMMARY).write_text(json.dumps(summary))
    lines = [line.split(",") for line in (place / "a" / METRICS).read_text().splitlines()]
    short = lines[0].index("pictures_per_second")  # a column that was not there
    text = "\n".join(",".join(cell for k, cell in enumerate(line) if k != short) for line in lines)
    (place / "a" / METRICS).write_text(text + "\n")
    run = compare_runs(["a", "b"]).runs[0]
    assert run.finished and run.dataset == "colours" and run.rows[0]["pictures_per_second"] is None
    assert run.seconds == pytest.approx(sum(row["seconds"] for row in run.rows))


@pytest.mark.parametrize(
    ("folders", "error", "said"),
    [
        (["a"], ConfigError, "two run folders or more"),
        ("a", ConfigError, "two run folders or more"),
        (["a", "b", "./a"], ConfigError, "a is given twice"),
        (["a", "nowhere"], CheckpointError, "nowhere does not exist"),
        (["a", f"b/{MODEL}"], CheckpointError, "is a file; give the folder of the run"),
        (["a", "empty"], CheckpointError, "is empty the folder of a run"),
    ],
)
def test_what_are_no_runs_is_refused(place, folders, error, said):
    (place / "empty").mkdir()
    with pytest.raises(error, match=said):
        compare_runs(folders)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "no table of a run"), (b"a,b\n1,2\n", "has no column epoch"),
        (b"epoch,train_loss,train_accuracy\n1,x,0.5\n", "damaged in line 2: could not convert"),
        (b"epoch,train_loss,train_accuracy\n1,0.5,0.5\n2,0.", "damaged in line 3: it is not whole"),
    ],
)  # fmt: skip
def test_a_damaged_table_is_named_with_its_line(place, content, said):
    (place / "b" / METRICS).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"b.{METRICS} .*{said}"):
        compare_runs(["a", "b"])


def test_the_pictures_on_which_runs_disagree_are_found_whatever_their_sizes(place):
    asked = disagreement(compare_runs(["a", "b", "c"]).runs)
    config = Config.from_dict(json.loads((place / "a" / CONFIG).read_text()))
    guesses = []
    for name in "abc":
        one = load_model(place / name)
        test = data.load(config.data, size=one.size[0]).test
        guesses.append(predict(one.model, test.images, one.normalize).argmax(axis=1))
    assert np.array_equal(asked.guesses, guesses) and not asked.notes
    differ = {k for k in range(len(test)) if len({guess[k] for guess in guesses}) > 1}
    assert differ and set(asked.places) == differ and asked.pictures.names == test.names
    sure = asked.sure[:, asked.places].min(axis=0)
    assert (np.diff(sure) <= 0).all()


def test_the_order_of_the_classes_of_a_model_does_not_matter(place):
    one = load_model(place / "a")
    order = [2, 0, 1]
    one.model.fc.weight.data[...] = one.model.fc.weight.data[:, order]
    one.model.fc.bias.data[...] = one.model.fc.bias.data[order]
    object.__setattr__(one, "classes", tuple(one.classes[k] for k in order))
    save_model(place / "b" / MODEL, one)
    assert not len(disagreement(compare_runs(["a", "b"]).runs).places)


def test_what_cannot_be_asked_is_said(place, trained):
    def asked(*folders):
        return disagreement(compare_runs(folders).runs)

    make_pictures(place / "others", seed=1)
    change(place / "b" / CONFIG, data=str(place / "others"))
    with pytest.raises(DataError, match=r"a and b have other test pictures, 12 each"):
        asked("a", "b")
    for path in (place / "others").glob("*/1?.png"):
        path.unlink()
    with pytest.raises(DataError, match="a has 12 test pictures and b 6: other pictures"):
        asked("a", "b")
    change(place / "b" / CONFIG, data=str(place / "gone"))
    with pytest.raises(DataError, match="the pictures that b was trained on are no longer at .*gone"):
        asked("a", "b")
    change(place / "b" / CONFIG, data=str(trained / "colours"))
    one = load_model(place / "b")
    object.__setattr__(one, "classes", ("blue", "green", "pink"))
    save_model(place / "b" / MODEL, one)
    with pytest.raises(ConfigError, match="a tells apart blue, green, red, b blue, green, pink: other"):
        asked("a", "b")


def test_pictures_that_have_changed_since_are_noticed(place):
    change(place / "a" / SUMMARY, test_accuracy=0.0)
    (note,) = disagreement(compare_runs(["a", "b"]).runs).notes
    assert note.startswith("a gets ") and "of 12 pictures right now, and when it was tested 0" in note


def test_a_figure_takes_the_place_of_an_earlier_one_and_of_nothing_else(place):
    compared = compare_runs(["a", "b", "c"])
    for name in ("curves.png", "curves.svg"):
        compared.draw(name)
        first = Path(name).read_bytes()
        compared.draw(name)
        assert Path(name).read_bytes() == first  # and no time of day in it
    with Image.open("curves.png") as image:
        assert min(image.size) > 400
    text = Path("curves.svg").read_text()
    assert text.startswith("<?xml") and "minires compare" in text
    Path("mine.png").write_bytes(Path("a").resolve().name.encode())
    with pytest.raises(ConfigError, match="mine.png is there already, and is a figure of no earlier"):
        compared.draw("mine.png")
    with pytest.raises(ConfigError, match="a figure is written as .png or .svg"):
        compared.draw("curves.pdf")
    disagreement(compared.runs).draw("sheet.png")
    with Image.open("sheet.png") as image:
        assert min(image.size) > 150
    with pytest.raises(ConfigError, match="a sheet of pictures is written as .png"):
        disagreement(compared.runs).draw("sheet.svg")


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn in the test."""
    made, make = [], runs_drawing.new_figure

    def kept(*size):
        made.append(make(*size))
        return made[-1]

    monkeypatch.setattr(runs_drawing, "new_figure", kept)
    return made


def test_the_figure_has_a_line_for_each_run_and_one_colour_for_a_group(place, figures):
    compared = compare_runs(["a", "b", "c"])
    compared.draw("curves.png")
    (figure,) = figures
    for axes, (column, _, scale) in zip(figure.axes, runs_drawing.PANELS, strict=True):
        drawn = {line.get_color(): [] for line in axes.lines}
        for line, run in zip(axes.lines, compared.runs, strict=True):
            drawn[line.get_color()].append(line.get_linestyle())
            assert np.allclose(line.get_ydata(), [scale * row[column] for row in run.rows])
        assert sorted(drawn.values()) == [["-"], ["-", "--"]]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["a (seed 0)", "b (seed 7)", "c"]


def test_the_sheet_shows_each_guess(place, figures):
    asked = disagreement(compare_runs(["a", "b"]).runs)
    asked.draw("sheet.png")
    texts = [axes.texts[0].get_text() for axes in figures[0].axes if axes.texts]
    assert len(texts) == len(asked.places)
    for text, place_ in zip(texts, asked.places, strict=True):
        one, other = (asked.classes[guess] for guess in asked.guesses[:, place_])
        assert text.startswith(f"a: {one}\nb: {other}\n")
    assert f"disagree on {len(texts)} of 12" in figures[0].get_suptitle()


# ------------------------------------------------------------------------------------------ the command


def test_the_command_prints_a_table_what_differs_and_the_disagreements(place, capsys):
    status, out, _ = call(capsys, "compare", "a", "b", "c")
    assert status == 0 and Path("compare.png").is_file() and Path("disagree.png").is_file()
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    said = json.loads((place / "b" / SUMMARY).read_text())
    assert rows["b"] == [
        "b", "tiny", "colours", "auto", "7", "3", f"{100 * said['test_accuracy']:.2f}%",
        f"{said['test_loss']:.4f}", f"{said['seconds']:.1f}",
    ]  # fmt: skip
    assert "mean and spread, 2 seeds" in out and out.count(" +- ") == 3
    assert "optimizer.lr  a: " in out and "c: 0.05" in out
    assert "The runs disagree on " in out and "test pictures: disagree.png" in out


def test_the_command_as_json(place, capsys):
    unfinished(place / "c")
    got = json.loads(call(capsys, "compare", "a", "b", "c", "--out", "x.svg", "--json")[1])
    assert got["out"] == "x.svg" and got["sheet"] == "disagree.png"
    assert [one["finished"] for one in got["runs"]] == [True, True, False]
    assert len(got["runs"][0]["curves"]) == 3 and got["groups"][0]["seeds"] == [0, 7]
    assert got["differences"]["seed"] == {"a": 0, "b": 7, "c": 0}
    asked = disagreement(compare_runs(["a", "b"]).runs)
    assert got["pictures"]["asked"] and got["pictures"]["disagree"] == len(asked.places)
    first = got["pictures"]["pictures"][0]
    assert first["picture"] == asked.pictures.names[asked.places[0]]
    assert first["guesses"]["a"]["label"] != first["guesses"]["b"]["label"]


def test_what_cannot_be_compared_is_said_and_the_rest_given(place, capsys):
    change(place / "b" / CONFIG, data=str(place / "gone"))
    for more, said in (((), "The test pictures: the pictures that b was trained on are no longer at"),
                       (("--no-pictures",), "The test pictures: left out")):  # fmt: skip
        status, out, _ = call(capsys, "compare", "a", "b", "--out", "x.png", *more)
        assert status == 0 and said in out and "mean and spread" not in out and "data" in out
        assert Path("x.png").is_file() and not Path("disagree.png").exists()
    got = json.loads(call(capsys, "compare", "a", "b", "--json")[1])
    assert got["pictures"]["asked"] is False and "no longer at" in got["pictures"]["why"]
    assert got["sheet"] is None


def test_the_command_refuses_before_it_writes(place, capsys):
    Path("disagree.png").write_bytes(b"a picture of mine")
    for status, said, arguments in (
        (2, "two run folders or more", ("a", "--no-pictures")),
        (1, "nowhere does not exist", ("a", "nowhere", "--no-pictures")),
        (2, "disagree.png is there already", ("a", "b")),
        (2, "a file of the run in a", ("a", "b", "--out", "a/curves.png")),
        (2, "disagree.png is there already", ("a", "b", "--out", "disagree.png")),
        (2, "is written as .png or .svg", ("a", "b", "--out", "x.gif")),
    ):
        got, out, err = call(capsys, "compare", *arguments)
        assert (got, out) == (status, "") and said in err and len(err.splitlines()) == 1
    assert not Path("compare.png").exists() and Path("disagree.png").read_bytes() == b"a picture of mine"
