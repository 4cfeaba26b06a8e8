"""All runs of a lab: found again, gone on with, spread over ranks; a lab of one's own; what is refused."""

import csv
import importlib
import json
import re
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from command_line import call, refused
from quick_runs import dark_and_light

import minires.lab
from minires import distributed
from minires.errors import CheckpointError, ConfigError, DataError, MiniresError
from minires.lab import Case, Expect, Lab, Numbers, Scale, asked, draw, find, load_file, recalled, run_lab
from minires.lab import run as lab_run
from minires.lab.report import again, markdown, report, scaled_down
from minires.lab.run import LEARNT, Pictures, Run
from minires.train import Interrupted, continuing
from minires.train.canvas import new_figure

OWN = '''
"""Is a second epoch of use?"""

import sys

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
        draw.dots(figure.subplots(), numbers, "loss")
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
    report = Path("mine/longer-quick-pictures/report.md").read_text()
    assert "everybody" in report and "two are better | 0.1 |" in report
    assert "scaled down" not in report  # it says nothing of a larger scale
    again = "`minires lab longer.py --scale quick --seeds 2 --data pictures`"
    assert again in report
    status, out, _ = call(capsys, *arguments)
    assert status == 0 and len(done) == 4 and "4 of them done before" in out
    assert Path("mine/longer-quick-pictures/report.md").read_text() == report
    # The results alone are enough: nothing is trained again where the run folders are gone.
    shutil.rmtree("mine/runs")
    status, out, _ = call(capsys, *arguments, "--json")
    found = json.loads(out)
    assert status == 0 and len(done) == 4 and len(found["judged"][0]["values"]) == 2
    # One seed more: only its two runs are done.
    call(capsys, *arguments[:-1], "3")
    assert len(done) == 6
    with open("mine/longer-quick-pictures/table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [row for row in rows if row["figure"] == "loss"]
    assert [(row["case"], row["seed"]) for row in losses] == [
        (case, str(seed)) for case in ("one", "two") for seed in range(3)
    ]
    results = json.loads(Path("mine/longer-quick-pictures/results.json").read_text())["runs"]
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
    with pytest.raises(CheckpointError, match=r"another measure.*run it anew: minires lab longer\.py "):
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
        draw.dots(figure.subplots(), numbers, "size")


def test_a_smaller_set_is_used_whole_and_that_is_said(folder):
    lab, said = find("./longer.py"), []
    scale = quick(lab).but(pictures=5_000, tests=2_000)
    found = run_lab(lab, scale, seeds=1, out="labs", data="pictures", say=said.append)
    assert any(one.startswith("pictures has ") and "not 5,000: all are used" in one for one in said)
    assert said[0] == "  reads the pictures of pictures, 8x8" and sum("reads" in one for one in said) == 1
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
        *((OWN.replace("    def cases", f"    means = {means}\n\n    def cases"), "means is a dict that says")
          for means in ("None", "['size']", "{'size': 3}")),
        ("def", "fails when it is run: SyntaxError"),
        (OWN + "\nclass Second(Longer):\n    pass\n", "has Longer, Second"),
        (OWN.replace("claim, source", "claims, source"), "does not say its claim"),
        (OWN.replace('"longer", "Two', '"../longer", "Two'), "names a folder"),
        (OWN.replace("Expect(\"two", "dict(a=\"two"), "a list of minires.lab.Expect"),
        (OWN.replace('"longer", "Two', '"sigmoid", "Two'), "a lab of minires is called 'sigmoid'"),
        (OWN.replace("= [", "= (").replace("\n    ]", "\n    )"), "a list of minires.lab.Expect"),
        (OWN.replace('of=("one", "loss")', 'of="loss"'), "of is the name of a case and of what was measured"),
        (OWN.replace("expects = [", "quick = 'fast'\n    expects = ["), "quick is a minires.lab.Scale"),
        ("raise SystemExit(0)", "fails when it is run: SystemExit: 0"),
        (OWN.replace("    def figure", "    def figures"), "does not define figure(self, numbers, figure)"),
        (OWN.replace("    def cases", "    def case"), "does not define cases(self, scale)"),
        (OWN.replace('"longer", "Two epochs are better than one"', '"longer", 7'), "title is a text, not 7"),
        (OWN.replace("    def measure", "    def __init__(self):\n        1 / 0\n\n    def measure"),
         "fails when it is run: ZeroDivisionError"),
        (OWN.replace("    def cases", "    further = expects\n\n    def cases"),
         "two rules say 'two are better'"),
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
    assert "nonsense" in refused(capsys, 2, "lab", "sigmoid", "--device", "nonsense")
    lab = find("./longer.py")
    with pytest.raises(ConfigError, match="quick, hour or full"):
        run_lab(lab, "week")
    with pytest.raises((ConfigError, DataError)):
        run_lab(lab, quick(lab).but(data="nothing-here"), say=str)
    with pytest.raises(MiniresError, match="cannot make the folder"):
        run_lab(lab, quick(lab), out=folder / "longer.py", say=str)


def test_where_there_are_no_pictures_others_are_named(folder, capsys, monkeypatch):
    monkeypatch.setenv("MINIRES_DATA", str(folder))
    for lab in ("shortcuts", "sigmoid"):
        assert "'cifar10' not found" in (said := refused(capsys, 1, "lab", lab, "--seeds", "1"))
        assert "or take others, say --data hands" in said
    (folder / "empty").mkdir()
    said = refused(capsys, 1, "lab", "sigmoid", "--data", "empty", "--seeds", "1")
    assert "empty" in said and "take others" not in said  # whoever names a folder means it


def test_a_stop_while_it_measures_says_how_to_go_on(folder, capsys, monkeypatch):
    def stops(self, run):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(find("sigmoid")), "measure", stops)
    status, _, err = call(capsys, "lab", "sigmoid", "--data", "pictures", "--seeds", "1")
    assert status == 130 and "the same command goes on" in err


def test_damaged_results_are_done_again(folder):
    lab = find("./longer.py")
    whole = run_lab(lab, quick(lab), seeds=1, out="labs", say=str)
    results = Path("labs/longer-tiny/results.json")
    results.write_text(results.read_text()[:100])
    assert run_lab(lab, quick(lab), seeds=1, out="labs", say=str).numbers == whole.numbers


def test_an_own_network_that_changes_is_trained_anew_and_nothing_else_is(folder, monkeypatch):
    done = trained(monkeypatch)
    (folder / "parts_of_it.py").write_text("CHANNELS = 4\n")
    ours = "from parts_of_it import CHANNELS\n" + OWN.replace('"""Is a second epoch of use?"""', "")
    ours = ours.replace("Conv2d(3, 4,", "Conv2d(3, CHANNELS,").replace("Linear(4,", "Linear(CHANNELS,")

    def run(text):
        before = len(done)
        (folder / "longer.py").write_text(text)
        lab = find("./longer.py")
        found = run_lab(lab, quick(lab), seeds=1, out="labs", say=str)
        return len(done) - before, found

    monkeypatch.setattr(sys, "path", list(sys.path))
    nowhere = types.ModuleType("nowhere")
    nowhere.__file__ = "_nowhere.py"  # as torch.classes has
    monkeypatch.setitem(sys.modules, "nowhere", nowhere)
    assert run(ours)[0] == 2
    others = (
        ours.replace("(figure.subplots()", "(figure.subplots(1)"), "# a comment\n" + ours,
        ours.replace('{"loss"', '{"more": 7, "loss"'),
    )  # fmt: skip
    assert [run(one)[0] for one in others] == [0, 0, 0]
    assert run(ours.replace("relu=True", "relu=False"))[0] == 2
    (folder / "parts_of_it.py").write_text("CHANNELS = 5  # one more\n")
    changed = run(ours)
    assert changed[0] == 2 and "own_net_of_a_lab" in str(next(iter(changed[1].cases.values())).settings)
    assert sys.modules["parts_of_it"].CHANNELS == 5  # in the same process


def test_pictures_are_known_by_what_they_are_and_not_by_where(folder, monkeypatch):
    lab, done = find("./longer.py"), trained(monkeypatch)
    run_lab(lab, quick(lab), seeds=1, out="labs", say=str)
    same = quick(lab).but(data=str(folder / "pictures"))
    run_lab(lab, same, seeds=1, out="labs", say=str)
    assert len(done) == 2
    next((folder / "pictures" / "dark").iterdir()).unlink()
    run_lab(lab, quick(lab), seeds=1, out="labs", say=str)
    assert len(done) == 4


def test_results_of_other_pictures_stand_by_themselves(folder):
    dark_and_light(folder / "other" / "pictures")
    run_lab(find("sigmoid"), "quick", seeds=1, out="labs", data="pictures", say=str)
    results = Path("labs/sigmoid-quick-pictures/results.json")
    before = results.read_text()
    with pytest.raises(DataError, match="has the results of pictures.*another folder"):
        run_lab(find("sigmoid"), "quick", seeds=1, out="labs", data="other/pictures", say=str)
    assert results.read_text() == before and not Path("labs/sigmoid-quick").exists()


class Two(Fresh):
    """Two cases of the same settings, which differ in what is measured of them."""

    name = "two"
    expects = (Expect("more", of=("a", "size"), minus=("b", "size"), above=0, unit=""),)

    def cases(self, scale):
        return {"a": scale.fresh(), "b": scale.fresh()}

    def measure(self, run):
        return {"size": 5.0 + run.seed / 10 if run.case == "a" else 1.0}

    def figure(self, numbers, figure):
        draw.dots(figure.subplots(), numbers, "size")


def test_two_cases_of_the_same_settings_are_two(folder):
    found = run_lab(Two(), quick(Two()), seeds=3, out="labs", say=str)
    assert found.judged[0].values == (4.0, 4.1, 4.2) and found.verdict == "agrees"
    assert recalled(Two(), quick(Two()), "labs").judged == found.judged


def test_more_seeds_that_were_measured_before_are_kept(folder, monkeypatch):
    run_lab(Two(), quick(Two()), seeds=3, out="labs", say=str)
    assert len(run_lab(Two(), quick(Two()), seeds=1, out="labs", say=str).numbers["a"]) == 1
    monkeypatch.setattr(Two, "measure", lambda self, run: pytest.fail("measured again"))
    assert run_lab(Two(), quick(Two()), seeds=3, out="labs", say=str).verdict == "agrees"


def test_what_another_process_measures_meanwhile_stays(folder, monkeypatch):
    def measure(self, run):
        if run.seed == 1:  # another one ends in the midst of it
            monkeypatch.setattr(Two, "measure", real)
            run_lab(Two(), quick(Two()), seeds=1, out="labs", say=str)
            assert not Path("labs/two-tiny/measured/nothing").exists()
            monkeypatch.setattr(Two, "measure", measure)
        return real(self, run)

    real = Two.measure
    monkeypatch.setattr(Two, "measure", measure)
    assert run_lab(Two(), quick(Two()), seeds=3, out="labs", say=str).verdict == "agrees"


def test_results_of_which_a_run_is_missing_are_not_recalled(folder):
    run_lab(Two(), quick(Two()), seeds=3, out="labs", say=str)
    path = Path("labs/two-tiny/results.json")
    content = json.loads(path.read_text())
    del content["runs"][1]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="run it anew"):
        recalled(Two(), quick(Two()), "labs")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('of=("one", "loss")', 'of=("ones", "loss")', "the rule 'two are better': unknown case 'ones'. Did"),
        ('of=("one", "loss")', 'of=("one", "los")', "'one': unknown number 'los'. Did you mean 'loss'"),
        ('of=("one", "loss")', 'of=("one", "val_errors")', "of 'val_errors', which is no number, but a list"),
        ("run.epochs[-1]", "run.epochs[7]", "of 'one', seed 0 fails, longer.py, line 31: IndexError"),
        ('{"loss": run', "{1} or {'loss': run", "gives a dict of numbers by name, not a set"),
        ('{"loss"', '{"all": {1}, "loss"', "Object of type set is not JSON serializable"),
        ("**run.errors()", "**run.model(run.batch(2))", "of 'one', seed 0 fails, longer.py, line 31"),
        ('numbers, "loss")', 'numbers, "loss") + 1', "figure() fails, longer.py, line 34: TypeError"),
        ('numbers, "loss")', 'numbers, "los")', "longer.py, line 34: unknown number 'los'"),
        ("return {\n            name: scale", "{\n            name: scale", "cases() gives a dict"),
        ('scale.train("own_net_of_a_lab", epochs=epochs)', "{}", "the case 'one' is a dict; make it with"),
        ("epochs=epochs", "epochs=1", "'one' and 'two' are one and the same training"),
        ("scale.train(", "scale.trains(", "cases() fails, longer.py, line 2"),
        ('{"loss": run', 'sys.exit() or {"loss": run', "of 'one', seed 0 fails, longer.py, line 31: Sys"),
        ('{"loss"', '{"all": [0.123] * 200_000, "loss"', "characters of JSON, and at most"),
        ('train("own_net_of_a_lab", epochs=epochs)', 'fresh(of={epochs})', "settings of the case 'one' are"),
        ("name: scale.train", "epochs: scale.train", "the name of a case is a text"),
        ("name: scale.train", "'_' + name: scale.train", "does not begin with _"),
        ('numbers, "loss")', "numbers, 'loss', figure.suptitle(r'$\\frac$'))", "figure() fails"),
    ],
)
def test_what_is_wrong_in_an_own_lab_is_said_with_its_place(folder, old, new, words):
    assert OWN.count(old) == 1
    (folder / "longer.py").write_text(OWN.replace(old, new))
    lab = find("longer.py")
    with pytest.raises(MiniresError, match=re.escape(words)) as error:
        run_lab(lab, quick(lab), seeds=2, out="labs", say=str)
    assert str(error.value).startswith("the lab longer: ")
    if new.startswith("of="):  # before the second run
        assert len(list(Path("labs/runs").iterdir() if Path("labs/runs").exists() else [])) <= 1


class Keeps(Diverges):
    name = "keeps"
    expects = (Expect("", of=("best", "test_error"), minus=("last", "test_error"), below=1),)

    def cases(self, scale):
        return {keep: scale.train("resnet20_cifar", keep=keep, variant={"repeats": (1, 1, 1)})
                for keep in ("best", "last")}  # fmt: skip


def test_which_epoch_is_tested_makes_another_run(folder, monkeypatch):
    done = trained(monkeypatch)
    run_lab(Keeps(), quick(Keeps()), seeds=1, out="labs", say=str)
    assert len(set(done)) == 2


class Patient(Diverges):
    name = "patient"

    def cases(self, scale):
        return {"fast": scale.train("resnet20_cifar", patience=1, variant={"repeats": (1, 1, 1)})}


def test_a_run_that_patience_ended_counts_as_it_was(folder):
    found = run_lab(Patient(), quick(Patient(), epochs=30), seeds=1, out="labs", say=str).numbers["fast"][0]
    assert not found["diverged"] and len(found["train_errors"]) < 30
    assert found["train_error"] == found["train_errors"][-1] and found["learnt"]


def test_a_damaged_run_says_how_it_is_mended(folder):
    lab = find("./longer.py")
    run_lab(lab, quick(lab), seeds=1, out="labs", say=str)
    shutil.rmtree("labs/longer-tiny")
    damaged = sorted(Path("labs/runs").iterdir())[0]
    for name in (continuing.SUMMARY, "metrics.csv"):
        (damaged / name).rename(damaged / f"{name}.away")
        for path in damaged.glob("checkpoint*"):
            path.unlink()
        with pytest.raises(CheckpointError, match=re.escape(f"remove the folder {damaged}")):
            run_lab(lab, quick(lab), seeds=1, out="labs", say=str)
        (damaged / f"{name}.away").rename(damaged / name)
    shutil.rmtree(damaged)
    assert run_lab(lab, quick(lab), seeds=1, out="labs", say=str).verdict == "too small to tell"


@pytest.mark.parametrize("name", ["", "q/../../evil", "..", "a b"])
def test_the_name_of_a_scale_names_a_folder(name):
    with pytest.raises(ConfigError, match="names a folder; use letters"):
        Scale(name)


def scaled(lab, **changes):
    scale = lab.quick.but(**changes)
    return {name: both for name, *both in scaled_down(lab, scale, lab.cases(scale))}


def test_what_was_scaled_down_is_what_the_runs_had():
    rows = scaled(find("P1"))
    assert rows["optimizer"][1] == "sgd, lr 0.1, momentum 0.9, weight_decay 0.0001"
    assert rows["training pictures"] == ["5000", "all"] and rows["epochs"] == ["12", "182"]
    rows = scaled(find("P3"))
    assert rows["network"] == ["-", "resnet34"] and rows["recipe"] == ["cifar", "imagenet"]
    assert scaled(find("P3"), variant={"bn": False})["bn"] == ["False", "-"]
    # What each of the cases sets by itself is said of them, not of all.
    rows = scaled(find("P15"))
    assert rows["optimizer"] == ["sgd, lr 0.05, momentum 0.9", "sgd, lr 0.1, momentum 0.9"]
    assert "epochs" not in scaled(find("P14"))  # nothing is trained


def test_the_list_names_all_labs(capsys):
    status, out, _ = call(capsys, "lab")
    assert status == 0 and all(lab.title in out for lab in minires.lab.LABS.values())
    status, out, _ = call(capsys, "lab", "--json")
    assert len(json.loads(out)["labs"]) == len(minires.lab.LABS)


def test_the_name_of_a_setting_changes_nothing_and_its_value_does():
    settings = {"model": "resnet20_cifar", "epochs": 3, "data": "cifar10"}
    key = lab_run.key(Case(settings), 0)
    assert key == lab_run.key(Case({**settings, "device": "cuda", "recipe": "cifar", "batch_size": 32}), 0)
    others = [
        lab_run.key(Case({**settings, "epochs": 4}), 0), lab_run.key(Case(settings), 1),
        lab_run.key(Case(settings, trained=False), 0),
    ]  # fmt: skip
    others += [
        lab_run.key(Case(settings, tests=5), 0), lab_run.key(Case({**settings, "watch": True}), 0),
        lab_run.key(Case(settings, decides="pictures"), 0),
    ]  # fmt: skip
    assert len({key, *others}) == 7
    # Settings of what is not trained are for measure(): the usual ones of a training, too.
    fresh = Case({"model": "resnet20_cifar", "data": "cifar10"}, trained=False)
    assert lab_run.key(fresh, 0) != lab_run.key(Case({**fresh.settings, "batch_size": 32}, trained=False), 0)
    # A measurement is another one where the scale says something else, too.
    cases = (Case(settings, extra=extra) for extra in ({"blocks": 2}, {}))
    assert len({asked.measure_key(find("P1"), "a", case, 0) for case in cases}) == 2


@pytest.mark.parametrize("head", [b"\xef\xbb\xbf", b"# -*- coding: latin-1 -*-\n# \xe9\n"])
def test_a_file_is_read_in_its_own_encoding(folder, head):
    (folder / "longer.py").write_bytes(head + OWN.encode())
    lab = find("./longer.py")
    assert lab.name == "longer" and lab.beside and lab.version != lab.beside


def test_a_network_inside_of_the_class_is_seen_to_change(folder):
    inside = "    class Net:\n        channels = 4\n\n    def measure"
    (folder / "longer.py").write_text(OWN.replace("    def measure", inside))
    before = find("./longer.py").beside
    (folder / "longer.py").write_text(OWN.replace("    def measure", inside.replace("4", "5")))
    assert find("./longer.py").beside != before


def test_helpers_of_one_name_in_two_folders_are_two(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, epochs in (("left", 1), ("right", 3)):
        (folder / name).mkdir()
        (folder / name / "helper.py").write_text(f"EPOCHS = {epochs}\n")
        text = OWN.replace("import sys", "from helper import EPOCHS")
        (folder / name / "longer.py").write_text(text.replace("=epochs)", "=EPOCHS + epochs)"))
    for name, epochs in (("left", 2), ("right", 4), ("left", 2)):
        lab = find(f"{name}/longer.py")
        assert lab.cases(lab.quick)["one"].settings["epochs"] == epochs


def test_a_helper_that_was_imported_before_is_read_anew_and_stays_that_of_others(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    (folder / "parts_too").mkdir()  # a package without an __init__.py
    text = OWN.replace("import sys", "import hh\nfrom parts_too import net as parts")
    (folder / "longer.py").write_text(text.replace("=epochs)", "=hh.K * parts.K + epochs)"))
    (folder / "hh.py").write_text("K = 1\n")
    mine, versions = importlib.import_module("hh"), set()
    for k in (1, 3, 5):
        (folder / "hh.py").write_text(f"K = {k}\n")
        for more in (1, 7):
            (folder / "parts_too" / "net.py").write_text(f"K = {more}\n")
            importlib.invalidate_caches()
            lab = find("./longer.py")
            assert lab.cases(lab.quick)["one"].settings["epochs"] == k * more + 1
            versions.add(lab.version)
    assert len(versions) == 6 and sys.modules["hh"] is mine and mine.K == 1
    import colorsys  # noqa: F401  (of the standard library: nothing to do with the lab)

    assert find("./longer.py").version == lab.version
    above = str(Path(json.__file__).parents[1])  # a lab's folder may hold the Python that runs it
    assert "json" not in minires.lab._beside(above)


def test_a_file_of_the_name_of_nothing_decides_on_nothing(folder):
    lab = find("./longer.py")
    before = {name: case.decides for name, case in asked.cases(lab, quick(lab), Pictures()).items()}
    (folder / "None").write_text("x")
    assert before == {name: case.decides for name, case in asked.cases(lab, quick(lab), Pictures()).items()}


class Starts(Diverges):
    name = "starts"

    def cases(self, scale):
        return {"fast": scale.train("resnet20_cifar", start_from="weights.npz")}


def test_weights_to_start_from_are_known_by_what_is_in_the_file(folder):
    keys = set()
    for content in (b"1", b"2"):
        Path("weights.npz").write_bytes(content)
        case = asked.cases(Starts(), quick(Starts()), Pictures())["fast"]
        keys.add(lab_run.key(case, 0))
    assert len(keys) == 2


class Odd(Two):
    """Measures what it is told to."""

    name = "odd"
    found: dict = {}

    def measure(self, run):
        return {"size": run.seed / 7, "half": run.seed / 1, **self.found.get(run.case, {})}

    def figure(self, numbers, figure):
        numbers["a"][0]["size"] = 1e9  # of a copy
        draw.dots(figure.subplots(), numbers, "size")


def test_numbers_of_two_kinds_too_large_ones_and_a_figure_that_changes_them(folder, monkeypatch):
    monkeypatch.setattr(Odd, "found", {"a": {"x": 5, "big": 10**400}, "b": {"x": [1, 2], "text": "so"}})
    found = run_lab(Odd(), quick(Odd()), seeds=2, out="labs", say=str)
    text = Path("labs/odd-tiny/report.md").read_text()
    assert "| a | 0.07143 (0.1) | 0.5000 (0.71) | 5 |" in text  # as many digits of each
    assert found.numbers["a"][0]["big"] is None and found.numbers["a"][0]["size"] == 0
    assert "| b | 0.07143 (0.1) | 0.5000 (0.71) | - |" in text
    around: list = []
    around.append(around)
    for odd in (np.linalg.slogdet(np.eye(2)), around, {1j}):
        monkeypatch.setattr(Odd, "found", {"a": {"x": odd}})
        with pytest.raises(MiniresError, match="measure.. of 'a', seed 2 gives numbers, texts, lists"):
            run_lab(Odd(), quick(Odd()), seeds=3, out="labs", say=str)
    monkeypatch.setattr(Odd, "found", {name: {"size": 1.7e308, "half": 0.5} for name in "ab"})
    assert run_lab(Odd(), quick(Odd()), seeds=2, out="large", say=str).judged[0].values == ()
    text = Path("large/odd-tiny/report.md").read_text()
    assert "no seed counts" in text and "The same numbers from all seeds" in text and "a; b." in text


def test_more_of_a_run_than_is_kept_is_refused_and_what_is_kept_can_be_read(folder, monkeypatch):
    monkeypatch.setattr(Odd, "found", {"a": {"x": [0.123456] * 100_000}})
    run_lab(Odd(), quick(Odd()), seeds=20, out="labs", say=str)
    assert (Path("labs/odd-tiny/results.json")).stat().st_size > 2**24
    assert len(recalled(Odd(), quick(Odd()), "labs").numbers["a"]) == 20


class Untold(Fresh):
    name = "untold"
    measure = Lab.measure


class NoModel(Fresh):
    name = "no-model"

    def cases(self, scale):
        return {"net": scale.fresh()}


def test_what_a_run_does_not_have_is_said(folder):
    with pytest.raises(ConfigError, match="'net' is not trained, so it has no errors.*define measure"):
        run_lab(Untold(), quick(Untold()), seeds=1, out="labs", say=str)
    with pytest.raises(ConfigError, match="'net' has no model: give one, scale.fresh"):
        run_lab(NoModel(), quick(NoModel()), seeds=1, out="labs", say=str)
    run = Run("fast", Case({"model": "resnet20_cifar", "data": "pictures"}), 3, folder, Pictures())
    run.summary = {"diverged": True, "test_accuracy": None}
    with pytest.raises(ConfigError, match="'fast', seed 3: its loss was not finite, so there is no model"):
        run.model  # noqa: B018


def test_learnt_is_five_points_below_guessing(folder, monkeypatch):
    assert LEARNT == 5
    monkeypatch.setattr(lab_run, "LEARNT", 25.0)  # which a float holds: of two classes 50% guess right
    case = Case({"model": "resnet20_cifar", "data": "pictures", "epochs": 1})
    run = Run("one", case, 0, folder, Pictures())
    run.summary = {"diverged": False, "test_accuracy": 0.5}
    for right, learnt in ((0.8, 1), (0.75, 1), (0.7, 0)):
        run.epochs = [{"train_accuracy": right, "val_accuracy": 0.5, "train_loss": 1.0}]
        assert run.errors()["learnt"] == learnt


def test_a_run_has_ended_with_a_model_or_a_loss_that_is_not_finite(folder):
    for summary, ended in (
        ({"test_accuracy": None}, False), ({"test_accuracy": 0.0}, True), ({"diverged": True}, True)
    ):  # fmt: skip
        (folder / continuing.SUMMARY).write_text(json.dumps(summary))
        assert lab_run.has_ended(folder) == ended
    (folder / continuing.SUMMARY).unlink()
    assert not lab_run.has_ended(folder)


def test_what_another_process_measured_beyond_this_one_stays(folder, monkeypatch):
    def measure(self, run):
        if run.case == "b":  # another one, of more seeds, ends before this one
            monkeypatch.setattr(Two, "measure", real)
            run_lab(Two(), quick(Two()), seeds=3, out="labs", say=str)
        return real(self, run)

    real = Two.measure
    monkeypatch.setattr(Two, "measure", measure)
    run_lab(Two(), quick(Two()), seeds=1, out="labs", say=str)
    monkeypatch.setattr(Two, "measure", lambda self, run: pytest.fail("measured again"))
    assert run_lab(Two(), quick(Two()), seeds=3, out="labs", say=str).verdict == "agrees"


class Told(Two):
    """One rule of each kind, one of them put when runs had been seen."""

    name = "told"
    expects = (
        Expect("more", of=("a", "size"), minus=("b", "size"), above=0, unit="", because="it agrees"),
        Expect("less", of=("b", "size"), minus=("a", "size"), above=0, unit="", because="it differs",
               added=True),
    )  # fmt: skip
    means = {"size": "how large it is"}  # noqa: RUF012

    def measure(self, run):
        return {"size": 5.0 + run.seed / 10 if run.case == "a" else 1.0, "learnt": int(run.seed != 1)}


def test_a_report_says_why_what_and_when(folder):
    found = run_lab(Told(), quick(Told()), seeds=3, out="labs", say=str)
    text = markdown(report(found))
    assert "**less**: it differs" in text and "it agrees" not in text
    assert text.count("| runs seen |") == 1
    assert "differs; b (1 of 3 seeds) learnt nothing; a (1 of 3 seeds) learnt nothing |" in text
    assert "a (1 of 3 seeds); b (1 of 3 seeds)" in text
    assert "| size | how large it is |" in text and "other pictures" in text and "cifar10" in text
    assert "to learn from" not in text  # nothing is trained
    assert "`run_lab` with this scale and `seeds=3`" in text
    degradation = find("P1")
    whole = types.SimpleNamespace(lab=degradation, scale=degradation.quick.but(pictures=None), seeds=3)
    assert again(whole) == "`run_lab` with this scale and `seeds=3`"  # that of 5,000 pictures is another
    other = quick(Told()).but(name="quick")  # of the name of a scale of the lab, and another one
    assert "`run_lab` with this scale" in markdown(
        report(run_lab(Told(), other, seeds=3, out="labs", say=str))
    )
    there = run_lab(Two(), "quick", seeds=2, out="labs", data="pictures", say=str)
    assert "`minires lab two --scale quick --seeds 2 --data pictures`" in markdown(report(there))
    assert recalled(Two(), "quick", "labs", data="pictures").judged == there.judged


def test_a_report_says_what_each_case_is():
    lab = find("P15")
    found = types.SimpleNamespace(
        lab=lab, scale=lab.quick, seeds=0, cases=lab.cases(lab.quick), numbers=Numbers(), judged=(),
        further=(), when="", folder=Path("nowhere"), verdict="agrees", alike=[],
    )  # fmt: skip
    found.numbers.update({name: [] for name in found.cases})
    text = markdown(report(found))
    assert "| weights | `resnet20_cifar`; lr 0.05; weight decay 0.001 |" in text
    rows = (line for line in text.splitlines() if line.startswith("| none, no BN | `resnet20_cifar`"))
    assert {"bn False", "initializer glorot_uniform", "lr 0.03"} < set(next(rows).split(" |")[1].split("; "))
    assert "In all of them: epochs 12; batch size 64; optimizer sgd; momentum 0.9" in text
    assert "augment shift, pixels 4, mode constant, flip." in text
    assert "other pictures" not in text

    lab = find("P10")
    found.lab, found.scale, found.cases = lab, lab.quick, lab.cases(lab.quick)
    found.numbers = Numbers({name: [] for name in found.cases})
    text = markdown(report(found))
    assert "schedule step; schedule at 0.5, 0.75; schedule factor 0.1; augment shift" in text
    assert "`se_resnet56_cifar`; gate bias False; repeats 3, 3, 3; reduction None;" in text
    assert "`se_resnet56_cifar`; gate bias False; repeats 3, 3, 3; reduction 4;" in text


def test_names_beside_points_do_not_cover_each_other(folder):
    numbers = Numbers({f"case {at}": [{"x": float(at), "y": 1.0 + at / 1000}] for at in range(4)})
    numbers["far"] = [{"x": 0.0, "y": 2.0}]
    figure = new_figure(6, 4)
    axes, other = figure.subplots(1, 2)
    draw.against(axes, numbers, "x", "y")
    draw.against(other, numbers, "x", "y", names=False)
    draw.named(other)
    assert [one.get_text() for one in other.get_legend().get_texts()] == list(numbers)
    assert not other.texts and axes.get_legend() is None
    heights = sorted(one.xy[1] for one in axes.texts)
    assert len(heights) == 5 and min(np.diff(heights)) > 0.04


def test_a_run_of_a_lab_is_looked_at_as_any_other(folder, capsys):
    lab = find("./longer.py")
    run_lab(lab, quick(lab).but(tests=1), seeds=1, out="labs", say=str)
    run = sorted(Path("labs/runs").iterdir())[0]
    status, out, err = call(capsys, "evaluate", run)
    assert status == 0 and "others than" not in err and "accuracy" in out
