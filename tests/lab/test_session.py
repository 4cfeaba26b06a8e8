"""All runs of a lab: found again, gone on with, spread over ranks; a lab of one's own; what is refused."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import call, refused
from quick_runs import dark_and_light

import minires.lab
from minires import distributed
from minires.errors import CheckpointError, ConfigError, DataError, MiniresError
from minires.lab import Case, Expect, Lab, Scale, draw, find, load_file, recalled, run_lab
from minires.lab import run as lab_run
from minires.train import Interrupted, continuing

OWN = '''
"""Is a second epoch of use?"""

from minires.lab import Expect, Lab, draw
from minires.models import register
from minires.nn import Conv2d, GlobalAvgPool2d, Linear, Sequential


@register("own_net_of_a_lab", size=8, classes=2)
def net(*, classes, rng):
    conv, fc = Conv2d(3, 4, 3, rng=rng, relu=True), Linear(4, classes, rng=rng)
    return Sequential(conv=conv, pool=GlobalAvgPool2d(), fc=fc)


class Longer(Lab):
    name, title = "longer", "Two epochs are better than one"
    claim, source = "A second epoch lowers the training loss", "everybody"
    expects = [
        Expect("two are better", of=("one", "loss"), minus=("two", "loss"), above=0, unit="", paper="0.1")
    ]

    def cases(self, scale):
        return {
            name: scale.train("own_net_of_a_lab", epochs=epochs)
            for epochs, name in enumerate(("one", "two"), 1)
        }

    def measure(self, run):
        return {"loss": run.epochs[-1]["train_loss"], **run.errors()}

    def figure(self, numbers, figure):
        draw.bars(figure.subplots(), numbers, "loss")
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with pictures and an own lab."""
    monkeypatch.chdir(tmp_path)
    dark_and_light(tmp_path / "pictures")
    (tmp_path / "longer.py").write_text(OWN)
    return tmp_path


def quick(lab, **changes):
    changes = {"pictures": None, "tests": None, **changes}
    return lab.quick.but(name="tiny", data="pictures", size=8, batch_size=4, **changes)


def trained(monkeypatch):
    """The names of the runs that are trained, as they are."""
    names = []
    real = lab_run.Trainer

    def noted(config, folder, **options):
        names.append(Path(folder).name)
        return real(config, folder, **options)

    monkeypatch.setattr(lab_run, "Trainer", noted)
    return names


def test_a_lab_of_ones_own_runs_from_the_command_line_and_what_is_done_is_not_done_again(
    folder, capsys, monkeypatch
):  # fmt: skip
    done = trained(monkeypatch)
    arguments = ("lab", "./longer.py", "--data", "pictures", "--out", "mine", "--seeds", "2")
    monkeypatch.setattr(Lab, "quick", Scale("quick", size=8, batch_size=4, about="seconds"))
    status, out, _ = call(capsys, *arguments)
    assert status == 0 and len(done) == 4 == len(set(done))
    assert "Two epochs are better than one" in out and "Verdict: " in out
    assert out.index("rule") < out.index("1 of 4") < out.index("4 of 4") < out.index("Verdict")
    report = Path("mine/longer-quick/report.md").read_text()
    assert "everybody" in report and "two are better | 0.1 |" in report
    status, again, _ = call(capsys, *arguments)
    assert status == 0 and len(done) == 4 and "4 of them done before" in again
    assert Path("mine/longer-quick/report.md").read_text() == report
    # The results alone are enough: nothing is trained again where the run folders are gone.
    shutil.rmtree("mine/runs")
    status, out, _ = call(capsys, *arguments, "--json")
    found = json.loads(out)
    assert status == 0 and len(done) == 4 and len(found["judged"][0]["values"]) == 2
    # One seed more: only its two runs are done.
    call(capsys, *arguments[:-1], "3")
    assert len(done) == 6
    with open("mine/longer-quick/table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [row for row in rows if row["figure"] == "loss"]
    assert [(row["case"], row["seed"]) for row in losses] == [
        (case, str(seed)) for case in ("one", "two") for seed in range(3)
    ]
    results = json.loads(Path("mine/longer-quick/results.json").read_text())["runs"]
    known = {f"{row['measured']['loss']:.6g}" for row in results}
    assert known == {f"{float(row['value']):.6g}" for row in losses}


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(folder, monkeypatch):
    lab = find("./longer.py")
    whole = run_lab(lab, quick(lab), seeds=1, out="whole", say=str)
    stop_in_second_epoch = {"left": 1}

    class Stops(lab_run.Trainer):
        def save(self):
            path = super().save()
            if self.config.epochs == 2 and stop_in_second_epoch["left"]:
                stop_in_second_epoch["left"] = 0
                raise Interrupted("stopped here", 2)
            return path

    monkeypatch.setattr(lab_run, "Trainer", Stops)
    with pytest.raises(Interrupted, match="stopped here; the same command goes on"):
        run_lab(lab, quick(lab), seeds=1, out="parts", say=str)
    begun = [path for path in Path("parts/runs").iterdir() if not (path / continuing.SUMMARY).exists()]
    assert len(begun) == 1 and not Path("parts/longer-tiny/results.json").exists()
    parts = run_lab(lab, quick(lab), seeds=1, out="parts", say=str)
    assert parts.numbers == whole.numbers


def test_a_change_of_measure_measures_again_and_trains_nothing(folder, monkeypatch):
    lab = find("./longer.py")
    run_lab(lab, quick(lab), seeds=1, out="labs", say=str)
    done = trained(monkeypatch)
    (folder / "longer.py").write_text(OWN.replace('{"loss"', '{"more": 7, "loss"'))
    other = find("./longer.py")
    assert run_lab(other, quick(other), seeds=1, out="labs", say=str).numbers["two"][0]["more"] == 7
    assert not done
    with pytest.raises(CheckpointError, match="another measure.*run it anew: minires lab longer"):
        recalled(lab, quick(lab), "labs")
    assert recalled(other, quick(other), "labs").numbers["one"][0]["more"] == 7


def test_ranks_share_the_runs_and_find_the_same(folder):
    lab = find("./longer.py")
    alone = run_lab(lab, quick(lab), seeds=2, out="alone", say=str)

    def work(comm):
        found = run_lab(lab, quick(lab), seeds=2, out="shared", comm=comm, say=str)
        return {"numbers": dict(found.numbers), "verdict": found.verdict}

    for found in distributed.run(2, work):
        assert found["numbers"] == dict(alone.numbers) and found["verdict"] == alone.verdict
    assert len(list(Path("shared/runs").iterdir())) == 4


class Diverges(Lab):
    name, title, claim, source = "diverges", "A rate of a million", "It learns", "nobody"
    expects = (Expect("it learns", of=("fast", "train_error"), below=1, unit="%"),)

    def cases(self, scale):
        return {"fast": scale.train("resnet20_cifar", optimizer={"lr": 1e6}, variant={"bn": False})}

    def figure(self, numbers, figure):
        draw.curves(figure.subplots(), numbers, "train_errors")


def test_a_loss_that_is_not_finite_is_a_result_that_counts_as_guessing(folder):
    lab = Diverges()
    with np.errstate(all="ignore"):
        found = run_lab(lab, quick(lab, epochs=3), seeds=2, out="labs", say=str)
    for seed in found.numbers["fast"]:
        assert seed["diverged"] == 1 and seed["test_error"] == 50 and seed["train_errors"] == [50.0] * 3
    assert found.verdict == "differs"
    said = []
    run_lab(lab, quick(lab, epochs=3), seeds=2, out="labs", say=said.append)
    assert any("2 of them done before" in line for line in said)


class Fresh(Lab):
    name, title, claim, source = "fresh", "Weights", "Weights are small", "nobody"
    expects = (Expect("small", of=("net", "size"), below=1, unit=""),)

    def cases(self, scale):
        return {"net": scale.fresh(model="resnet20_cifar", variant={"bn": False})}

    def measure(self, run):
        x, labels = run.batch(5, part="train")
        assert x.shape == (5, 8, 8, 3) and labels.shape == (5,)
        return {"size": float(np.abs(run.model.conv1.weight.data).mean()), "nan": float("nan")}

    def figure(self, numbers, figure):
        draw.bars(figure.subplots(), numbers, "size")


def test_a_smaller_set_is_used_whole_and_that_is_said(folder):
    lab, said = find("./longer.py"), []
    scale = quick(lab).but(pictures=5_000, tests=2_000)
    found = run_lab(lab, scale, seeds=1, out="labs", data="pictures", say=said.append)
    assert said[0].startswith("pictures has ") and "not 5,000: all are used" in said[0]
    assert found.scale.pictures is None


def test_what_is_not_trained_is_made_from_each_seed(folder):
    found = run_lab(Fresh(), quick(Fresh()), seeds=3, out="labs", say=str)
    sizes = [seed["size"] for seed in found.numbers["net"]]
    assert len(set(sizes)) == 3 and found.verdict == "agrees"
    assert found.numbers["net"][0]["nan"] is None and not list(Path("labs/runs").iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = 1", "must have one subclass of minires.lab.Lab, and has none"),
        ("1 / 0", "fails when it is run: ZeroDivisionError"),
        ("def", "fails when it is run: SyntaxError"),
        (OWN + "\nclass Second(Longer):\n    pass\n", "has Longer, Second"),
        (OWN.replace("claim, source", "claims, source"), "does not say its claim"),
        (OWN.replace('"longer", "Two', '"../longer", "Two'), "names a folder"),
        (OWN.replace("Expect(\"two", "dict(a=\"two"), "a list of minires.lab.Expect"),
    ],
)
def test_a_file_that_is_no_lab_is_refused(folder, capsys, content, words):
    registered = '@register("own_net_of_a_lab", size=8, classes=2)\n'
    (folder / "wrong.py").write_text(content.replace(registered, ""))
    with pytest.raises(MiniresError, match=re.escape(words)):
        load_file("wrong.py")
    status, _, err = call(capsys, "lab", "wrong.py")
    assert status in (1, 2) and words in err and "Traceback" not in err


def test_unknown_names_and_missing_pictures_are_refused(folder, capsys):
    assert "Did you mean 'shortcuts'?" in refused(capsys, 2, "lab", "shortcutz")
    assert "there is no file nowhere.py" in refused(capsys, 2, "lab", "nowhere.py")
    assert "nowhere" in refused(capsys, 2, "lab", "sigmoid", "--data", "nowhere")
    assert refused(capsys, 2, "lab", "sigmoid", "--seeds", "0")
    lab = find("./longer.py")
    with pytest.raises(ConfigError, match="quick, hour or full"):
        run_lab(lab, "week")
    with pytest.raises((ConfigError, DataError)):
        run_lab(lab, quick(lab).but(data="nothing-here"), say=str)
    with pytest.raises(MiniresError, match="cannot make the folder"):
        run_lab(lab, quick(lab), out=folder / "longer.py", say=str)


def test_damaged_results_are_done_again(folder):
    lab = find("./longer.py")
    whole = run_lab(lab, quick(lab), seeds=1, out="labs", say=str)
    results = Path("labs/longer-tiny/results.json")
    results.write_text(results.read_text()[:100])
    assert run_lab(lab, quick(lab), seeds=1, out="labs", say=str).numbers == whole.numbers


def test_the_list_names_all_labs(capsys):
    status, out, _ = call(capsys, "lab")
    assert status == 0 and all(lab.title in out for lab in minires.lab.LABS.values())
    status, out, _ = call(capsys, "lab", "--json")
    assert len(json.loads(out)["labs"]) == len(minires.lab.LABS)


def test_the_name_of_a_setting_changes_nothing_and_its_value_does():
    settings = {"model": "resnet20_cifar", "epochs": 3}
    key = lab_run.key(Case(settings), 0)
    assert key == lab_run.key(Case({**settings, "device": "cuda", "recipe": "cifar", "batch_size": 32}), 0)
    others = [
        lab_run.key(Case({**settings, "epochs": 4}), 0), lab_run.key(Case(settings), 1),
        lab_run.key(Case(settings, trained=False), 0),
    ]  # fmt: skip
    assert len({key, *others}) == 4
