"""The pictures and tables of a run: they exist, are whole, and show what they should."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from train.small_run import CONFIG, small_model, small_splits

from minires.data import Dataset
from minires.errors import CheckpointError, MiniresError
from minires.train import Trainer, run_folder

CLASSES = tuple("012345")


def row(epoch, **changes):
    return {
        "epoch": epoch, "step": 10 * epoch, "lr": 1e-3 / epoch, "train_loss": 2.0 / epoch,
        "train_accuracy": 1 - 0.8 / epoch, "val_loss": 2.2 / epoch, "val_accuracy": 1 - 0.85 / epoch,
        "gradient_norm": 1.0, "pictures_per_second": 100.0, "seconds": 1.5, **changes,
    }  # fmt: skip


def rendered(figure):
    """The texts in a figure."""
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn in the test."""
    made, make = [], run_folder.new_figure

    def kept(*size):
        made.append(make(*size))
        return made[-1]

    monkeypatch.setattr(run_folder, "new_figure", kept)
    return made


def is_whole(path):
    with Image.open(path) as image:
        image.load()
        pixels = np.asarray(image.convert("RGB"))
    return min(pixels.shape[:2]) > 200 and pixels.std() > 5


def signs(count):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
    names = tuple(f"folder/picture_{i}.jpg" for i in range(count))
    return Dataset(images, np.arange(count) % 6, CLASSES, names, "signs")


def test_metrics_have_a_line_per_epoch_and_empty_fields_for_what_was_not_measured(tmp_path):
    path = tmp_path / "metrics.csv"
    run_folder.write_metrics(path, [row(1, val_loss=None, val_accuracy=None), row(2)])
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == run_folder.COLUMNS and len(rows) == 2
    assert rows[0]["val_loss"] == "" and float(rows[1]["val_loss"]) == 1.1
    assert float(rows[1]["train_accuracy"]) == 1 - 0.8 / 2


@pytest.mark.parametrize(
    ("losses", "scale"),
    [((2.0, 1.0, 1e-6), "linear"), ((50.0, 9.0, 1.0), "linear"), ((1e13, 1e13, 9e12), "linear"),
     ((1e13, 200.0, 1.5), "log"), ((500.0, 0.2, 0.0), "log")],
)  # fmt: skip
def test_losses_of_many_orders_of_magnitude_have_a_logarithmic_axis(losses, scale, figures, tmp_path):
    rows = [row(k, train_loss=loss, val_loss=None) for k, loss in enumerate(losses, 1)]
    run_folder.draw_curves(tmp_path / "curves.png", rows, title="a run")
    assert figures[0].axes[0].get_yscale() == scale
    assert ("Loss, logarithmic axis" in rendered(figures[0])) == (scale == "log")
    assert is_whole(tmp_path / "curves.png")


@pytest.mark.parametrize("epochs", [1, 20, 182])
def test_curves(epochs, tmp_path, figures):
    rows = [row(n) for n in range(1, epochs + 1)]
    run_folder.draw_curves(tmp_path / "curves.png", rows, title="a net on signs")
    assert is_whole(tmp_path / "curves.png")
    loss, accuracy, rate = figures[0].axes
    assert [list(line.get_ydata()) for line in loss.lines] == [
        [r["train_loss"] for r in rows],
        [r["val_loss"] for r in rows],
    ]
    assert list(accuracy.lines[1].get_ydata()) == [100 * r["val_accuracy"] for r in rows]
    assert list(rate.lines[0].get_ydata()) == [r["lr"] for r in rows]
    assert {"a net on signs", "training", "validation"} <= set(rendered(figures[0]))


def test_curves_say_that_the_training_loss_is_of_smoothed_labels(tmp_path, figures):
    run_folder.draw_curves(tmp_path / "curves.png", [row(1), row(2)], title="t", label_smoothing=0.1)
    loss, accuracy, _ = figures[0].axes
    assert [text.get_text() for text in loss.get_legend().get_texts()][0] == "training, smoothed labels"
    assert [text.get_text() for text in accuracy.get_legend().get_texts()][0] == "training"


@pytest.mark.parametrize(("balance", "of_loss", "of_accuracy"), [
    ("none", "training, smoothed labels", "training"),
    ("weights", "training, smoothed labels, weighed by class", "training"),
    ("sampler", "training, smoothed labels, classes drawn evenly", "training, classes drawn evenly"),
])  # fmt: skip
def test_curves_say_how_the_classes_count(balance, of_loss, of_accuracy, tmp_path, figures):
    options = {"label_smoothing": 0.1, "balance": balance}
    run_folder.draw_curves(tmp_path / "curves.png", [row(1), row(2)], title="t", **options)
    loss, accuracy, _ = figures[0].axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == [of_loss, "validation"]
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == [of_accuracy, "validation"]


def test_curves_without_validation_have_one_line(tmp_path, figures):
    rows = [row(n, val_loss=None, val_accuracy=None) for n in (1, 2)]
    run_folder.draw_curves(tmp_path / "curves.png", rows, title="t")
    assert [len(axes.lines) for axes in figures[0].axes] == [1, 1, 1]


def test_confusion_counts_rows_as_truth(tmp_path, figures):
    labels, guesses = np.array([0, 0, 0, 1, 5, 5]), np.array([0, 0, 2, 1, 5, 4])
    table = run_folder.confusion_table(labels, guesses, 6)
    assert table[0, 2] == 1 and table[5, 4] == 1 and table[2, 0] == 0 and table.sum() == 6
    run_folder.draw_confusion(tmp_path / "confusion.png", labels, guesses, CLASSES)
    assert is_whole(tmp_path / "confusion.png")
    texts = rendered(figures[0])
    assert "4 of 6 test pictures right (66.7%)" in texts and "2" in texts
    shown = figures[0].axes[0].images[0].get_array()
    assert shown[0, 0] == pytest.approx(200 / 3) and shown[0, 2] == pytest.approx(100 / 3)
    assert shown[2, 0] == 0


def test_confusion_of_many_long_classes(tmp_path):
    names = [f"a class with a long name {i}" for i in range(40)]
    labels = np.arange(400) % 40
    run_folder.draw_confusion(tmp_path / "confusion.png", labels, labels, names)
    assert is_whole(tmp_path / "confusion.png")


def test_mistakes_show_truth_guess_and_file_the_surest_first(tmp_path, figures):
    dataset, probabilities = signs(12), np.full((12, 6), 0.02)
    probabilities[np.arange(12), dataset.labels] = 0.9
    probabilities[7], probabilities[4] = [0, 0, 0, 0.6, 0, 0.4], [0.2, 0.8, 0, 0, 0, 0]
    run_folder.draw_mistakes(tmp_path / "mistakes.png", dataset, probabilities)
    assert is_whole(tmp_path / "mistakes.png")
    texts = rendered(figures[0])
    assert "2 of 12 test pictures misclassified" in texts
    titles = [axes.get_title() for axes in figures[0].axes if axes.images]
    assert titles == ["true: 4\nguessed: 1, 80%", "true: 1\nguessed: 3, 60%"]
    assert "picture_4.jpg" in texts and "picture_7.jpg" in texts
    first = next(axes.images[0].get_array() for axes in figures[0].axes if axes.images)
    assert np.array_equal(first, dataset.images[4])


def test_names_that_are_no_utf_8_are_drawn_as_escapes(tmp_path, figures):
    name = "a\udcff"
    run_folder.draw_curves(tmp_path / "curves.png", [row(1)], title=name)
    dataset = replace(signs(12), classes=(name,) * 6, names=(name,) * 12)
    wrong = np.roll(np.eye(6)[dataset.labels], 1, axis=1)
    run_folder.draw_confusion(tmp_path / "confusion.png", dataset.labels, wrong.argmax(1), dataset.classes)
    run_folder.draw_mistakes(tmp_path / "mistakes.png", dataset, wrong)
    assert all("a\\udcff" in " ".join(rendered(figure)) for figure in figures)
    assert len([path for path in tmp_path.iterdir() if is_whole(path)]) == 3
    run_folder.write_json(tmp_path / "a.json", {name: name})
    assert run_folder.read_json(tmp_path / "a.json") == {name: name}


def test_no_mistakes_and_very_many(tmp_path, figures):
    dataset = signs(60)
    right = np.eye(6)[dataset.labels]
    run_folder.draw_mistakes(tmp_path / "none.png", dataset, right)
    assert "All 60 are right." in rendered(figures[0]) and is_whole(tmp_path / "none.png")
    run_folder.draw_mistakes(tmp_path / "many.png", dataset, np.roll(right, 1, axis=1), most=16)
    assert "60 of 60 test pictures misclassified, the 16 surest are shown" in rendered(figures[1])
    assert sum(bool(axes.images) for axes in figures[1].axes) == 16 and is_whole(tmp_path / "many.png")


def test_json_files_are_whole_and_their_absence_is_named(tmp_path):
    run_folder.write_json(tmp_path / "a.json", {"name": "Größe", "value": 0.1})
    assert run_folder.read_json(tmp_path / "a.json") == {"name": "Größe", "value": 0.1}
    with pytest.raises(CheckpointError, match="b.json does not exist; is .* the folder of a run"):
        run_folder.read_json(tmp_path / "b.json")
    (tmp_path / "c.json").write_text('{"half": ')
    with pytest.raises(CheckpointError, match="c.json cannot be read"):
        run_folder.read_json(tmp_path / "c.json")
    (tmp_path / "e.json").mkdir()
    for text, said in (("[" * 100_000, "nested too deeply"), ('{"a": NaN}', "NaN"), ("\ud800", "utf")):
        (tmp_path / "c.json").write_bytes(text.encode(errors="surrogatepass"))
        with pytest.raises(CheckpointError, match=f"c.json cannot be read: .*{said}"):
            run_folder.read_json(tmp_path / "c.json")
    with pytest.raises(CheckpointError, match="e.json: this is a folder, not a file"):
        run_folder.read_json(tmp_path / "e.json")
    (tmp_path / "d.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="d.json holds list"):
        run_folder.read_json(tmp_path / "d.json")
    with pytest.raises(MiniresError, match="cannot write .*no such folder"):
        run_folder.write_json(tmp_path / "no such folder" / "a.json", {})


def test_a_json_file_is_not_read_beyond_any_size(tmp_path):
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match="no JSON file of a run has over 16,777,216"):
        run_folder.read_json(tmp_path / "config.json")


def test_letters_that_no_font_has_are_said_once(tmp_path, recwarn):
    labels = np.arange(4) % 2
    run_folder.draw_confusion(tmp_path / "a.png", labels, labels, ["\U000f0000", "\U000f0001"])
    assert ["a.png: no font here has all letters" in str(one.message) for one in recwarn] == [True]
    run_folder.draw_confusion(tmp_path / "b.png", labels, labels, ["cat", "dog"])
    assert len(recwarn) == 1 and (tmp_path / "b.png").stat().st_size > 1000


def test_a_run_without_figures_has_all_but_them(tmp_path):
    for name, figures in (("with", True), ("without", False)):
        Trainer(
            replace(CONFIG, epochs=1), tmp_path / name, splits=small_splits(), model=small_model(),
            progress=False, say=lambda line: None, figures=figures,
        ).run()  # fmt: skip
    there, kept = ({path.name for path in (tmp_path / name).iterdir()} for name in ("with", "without"))
    assert there - kept == {"curves.png", "confusion.png", "mistakes.png"} and kept < there
