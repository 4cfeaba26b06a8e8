"""Figures of layers and blocks that a run leaves: right, whole at any moment, the same when it goes on."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits

from minires import nn
from minires.errors import CheckpointError, ConfigError
from minires.models import build
from minires.nn.blocks import ResidualBlock, basic
from minires.train import Config, LayerFigures, Observer, Trainer, layer_figures, probe, watched
from minires.train.watch_file import placed, rows

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(autouse=True)
def each_epoch(monkeypatch):
    monkeypatch.setattr(watched, "SHARE", math.inf)


def residual():
    rng = np.random.default_rng(0)
    return nn.Sequential(
        conv1=nn.Conv2d(3, 6, 3, padding=1, rng=rng),
        bn1=nn.BatchNorm2d(6, momentum=0.9, relu=True),
        one=ResidualBlock(6, basic(6), stage=2, block="a", norm={"momentum": 0.9}, rng=rng),
        two=ResidualBlock(6, basic(8, stride=2), stage=3, block="a", norm={"momentum": 0.9}, rng=rng),
        pool=nn.GlobalAvgPool2d(),
        fc=nn.Linear(8, 3, rng=rng),
    )


def trainer(out, *, resume=False, observers=(), said=None, model=None, **changes):
    config = Config.from_dict({**CONFIG.to_dict(), **changes})
    return Trainer(
        config, out, splits=small_splits(), model=model or residual(), resume=resume, progress=False,
        observers=observers, say=[].append if said is None else said.append,
    )  # fmt: skip


class Stopped(BaseException):
    pass


class Ends(Observer):
    def __init__(self, step):
        self.step = step

    def stepped(self, run):
        if run.progress.step == self.step:
            raise Stopped


def stopped(out, step, **options):
    run = trainer(out, observers=[Ends(step)], **options)
    with pytest.raises(Stopped):
        run.run()
    run._lock.release()


def table(out):
    with open(out / "layers.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    class Keeps(Observer):
        """What the figures of the last epoch are, by hand."""

        def epoch_ended(self, run, row, val):
            model = residual()
            model.load_state_dict(run.model.state_dict())
            model.train()
            places = np.linspace(0, 92, 8).round().astype(int)
            y, kept = model.conv1(run.normalize(run.train_set.images[places])), {}

            def std(y):
                return float(np.std(y.numpy().astype("float64")))

            y = model.bn1(y, relu=False)
            kept["conv1"] = std(y)
            y = y.relu()
            for name, number in (("one", "2a"), ("two", "3a")):
                block = getattr(model, name)
                inner = getattr(block, f"bn{number}_branch2a")(
                    getattr(block, f"res{number}_branch2a")(y), relu=False
                )
                kept[f"res{number}_branch2a"] = std(inner)
                branch, shortcut = block.parts(y)
                kept[f"res{number}_branch2b"], kept[name] = std(branch), (std(branch), std(shortcut))
                y = block.join(branch, shortcut)
            kept["res3a_branch1"] = kept["two"][1]
            kept["fc"] = std(model.fc(model.pool(y)))
            self.kept = kept

    out, keeps = tmp_path_factory.mktemp("whole") / "run", Keeps()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watched, "SHARE", math.inf)
        trainer(out, observers=[keeps]).run()
    return out, keeps.kept


def test_responses_and_ways_are_those_of_the_model_after_the_epoch(whole):
    out, kept = whole
    found = {one.path: one for one in layer_figures(out) if one.epoch == 3}
    layers = ["conv1", "res2a_branch2a", "res2a_branch2b", "res3a_branch2a", "res3a_branch2b",
              "res3a_branch1", "fc"]  # fmt: skip
    assert sorted(found) == sorted([*layers, "one", "two"])
    for path in layers:
        assert found[path].response == pytest.approx(kept[path], rel=1e-4), path
        assert found[path].kind == ("Linear" if path == "fc" else "Conv2d")
        assert found[path].branch is None and found[path].gradient > 0
    for path in ("one", "two"):
        branch, shortcut = kept[path]
        assert (found[path].branch, found[path].shortcut) == pytest.approx((branch, shortcut), rel=1e-4)
        assert found[path].share == pytest.approx(branch / shortcut, rel=1e-4)
        assert found[path].response is None and found[path].kind == "ResidualBlock"


def test_all_epochs_are_there_and_the_table_says_the_same(whole):
    out, _ = whole
    found, lines = layer_figures(out), table(out)
    assert [one.epoch for one in found] == [1] * 9 + [2] * 9 + [3] * 9 and len(lines) == 27
    assert {one.step for one in found} == {12, 24, 36}
    for one, line in zip(found, lines, strict=True):
        assert list(line) == list(LayerFigures._fields)
        assert {name: "" if value is None else str(value) for name, value in one._asdict().items()} == line


@pytest.mark.parametrize("step", [7, 11, 12, 13, 24, 30])
def test_a_run_that_goes_on_has_the_same_table(step, whole, tmp_path, monkeypatch):
    out = tmp_path / "run"
    stopped(out, step)

    class First(Observer):
        def stepped(self, run):
            if not hasattr(self, "lines"):
                self.lines = table(out) if (out / "layers.csv").exists() else []
                self.step = run.progress.step

    first = First()
    trainer(out, resume=True, observers=[first]).run()
    assert all(int(line["step"]) < first.step for line in first.lines), "later ones are forgotten at once"
    assert len(first.lines) == 9 * ((first.step - 1) // 12)
    assert (out / "layers.csv").read_bytes() == (whole[0] / "layers.csv").read_bytes()
    for name in ("responses", "blocks", "epochs"):
        found, expected = (json.loads((one / "watch.json").read_text())[name] for one in (out, whole[0]))
        if name == "epochs":  # the table of validation is there or not, as before
            found, expected = ([{**one, "confusion": None} for one in kept] for kept in (found, expected))
        assert found == expected


@pytest.mark.parametrize("lost", ["checkpoint-00000012.safetensors", "layers.csv"])
def test_the_table_is_right_as_soon_as_a_run_goes_on(lost, tmp_path, whole):
    out = tmp_path / "run"
    stopped(out, 14)
    (out / lost).unlink()

    class First(Observer):
        lines = None

        def begins(self, run):
            self.at = run.progress.step

        def stepped(self, run):
            self.lines = len(table(out)) if self.lines is None else self.lines

    first = First()
    trainer(out, resume=True, observers=[first]).run()
    # From step 10 on the first epoch is not over yet: what was written of it is forgotten.
    assert (first.at, first.lines) == ((10, 0) if lost.startswith("check") else (12, 9))
    assert (out / "layers.csv").read_bytes() == (whole[0] / "layers.csv").read_bytes()


def test_a_run_of_an_older_version_goes_on_with_what_it_had(tmp_path):
    out = tmp_path / "run"
    stopped(out, 14)
    content = json.loads((out / "watch.json").read_text())
    del content["responses"], content["blocks"]
    for name in ("response", "branch", "shortcut"):
        del content["epochs"][0][name]
    (out / "watch.json").write_text(json.dumps(content))
    (out / "layers.csv").unlink()
    assert [one.path for one in layer_figures(out)][0] == "conv1"
    assert {one.response for one in layer_figures(out)} == {None}
    trainer(out, resume=True).run()
    found = [one for one in layer_figures(out) if one.path in ("conv1", "one")]
    assert [(one.epoch, one.response is None, one.branch is None) for one in found] == [
        (1, True, True), (1, True, True), (2, False, True), (2, True, False), (3, False, True),
        (3, True, False),
    ]  # fmt: skip
    assert len(table(out)) == 27


@pytest.mark.parametrize("content", [b"epoch,mine\n1,2\n", b"notes"])
def test_a_table_of_somebody_elses_stays_and_the_run_goes_on(content, tmp_path):
    out, said = tmp_path / "run", []
    stopped(out, 14)
    (out / "layers.csv").write_bytes(content)
    trainer(out, resume=True, said=said).run()
    assert (out / "layers.csv").read_bytes() == content
    assert any("layers.csv was not written by minires; it stays as it is" in line for line in said)


@pytest.mark.parametrize("left", [b"", bytes(700)])
def test_what_a_power_failure_leaves_of_the_table_is_written_anew(left, tmp_path, whole):
    out = tmp_path / "run"
    stopped(out, 14)
    (out / "layers.csv").write_bytes(left)
    trainer(out, resume=True).run()
    assert (out / "layers.csv").read_bytes() == (whole[0] / "layers.csv").read_bytes()


def test_of_a_deep_network_all_layers_respond_and_blocks_have_their_figures_in_one_row():
    model = build("resnet20_cifar")
    layers = probe.layers_of(model, most=12)
    x = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype("float32")
    look = probe.Probe(model, layers, x, np.arange(4))()
    assert [one.path for one in look.ways] == [f"res{stage}{block}" for stage in (2, 3, 4) for block in "abc"]
    assert len(look.responses) == 20 and len(layers) == 11
    named, blocks = [], []
    figures = placed(named, [one.path for one in look.responses], {}, response=[1.0] * 20)
    ways = placed(blocks, [one.path for one in look.ways], {}, branch=[2.0] * 9, shortcut=[4.0] * 9)
    content = {
        "layers": [{"path": one.path, "kind": one.kind} for one in layers], "responses": named,
        "blocks": blocks, "epochs": [{"epoch": 1, "step": 5, "layers": look.layers, **figures, **ways}],
    }  # fmt: skip
    found = {one.path: one for one in rows(content)}
    assert len(found) == 9 + 20  # conv1 and fc are among both
    assert found["res2a"].branch == 2.0 and found["res2a"].std > 0 and found["res2a"].kind == "ResidualBlock"
    assert found["conv1"].response == 1.0 and found["conv1"].std > 0
    assert found["res2a_branch2a"].response == 1.0 and found["res2a_branch2a"].std is None


def test_a_layer_that_comes_later_gets_a_place_and_calls_are_counted():
    named = []
    assert placed(named, ["a", "a"], {"a": "Linear"}, response=[1, 2]) == {"response": [1, 2]}
    assert placed(named, ["b", "a"], {}, response=[3, 4]) == {"response": [4, None, 3]}
    assert [one["path"] for one in named] == ["a", "a", "b"]


def test_without_the_file_or_with_another_it_says_why(tmp_path):
    trainer(tmp_path / "unwatched", watch=False, epochs=1, model=small_model()).run()
    with pytest.raises(CheckpointError, match=r"there is no .*watch.json: .* trained with watch=False"):
        layer_figures(tmp_path / "unwatched")
    (tmp_path / "watch.json").write_text('{"kind": "watch"}')
    with pytest.raises(CheckpointError, match="watch.json does not say what it should: format is missing"):
        layer_figures(tmp_path)
    with pytest.raises(ConfigError, match="give its path, not 3"):
        layer_figures(3)
