"""The stepper: where it goes, and what its cards say."""

import base64
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import minires
from minires.debug import card
from minires.debug.card import WIDTH, statistics
from minires.debug.step import step
from minires.errors import ConfigError, MiniresError, ShapeError
from minires.nn.layers import ReLU
from minires.ops.arithmetic import mul
from minires.ops.cases import all_cases
from minires.ops.cross_entropy import cross_entropy
from minires.tensor import Tensor

EVERY_CASE = [pytest.param(case, id=str(case)) for cases in all_cases().values() for case in cases]


def pictures(count=2, size=32):
    return np.random.default_rng(0).standard_normal((count, size, size, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def recording():
    return step(minires.models.build("resnet20_cifar"), pictures(), np.array([3, 7])).recording


@pytest.fixture
def s(recording):
    return minires.debug.step.Stepper(recording)


# ------------------------------------------------------------------------------------------- moving


def test_every_operation_is_passed_once_each_way(s):
    count = len(s.recording.operations)
    assert len(s) == 2 * count == len(list(s))
    assert [event.number for event in s] == list(range(2 * count))
    assert [event.operation.number for event in s if not event.backward] == list(range(count))
    assert [event.operation.number for event in s if event.backward] == list(s.recording.order_back)
    assert s.here is s[0] and s[0].op == "input" and s[-1].op == "input" and s[-1].backward
    assert s[count].op == "cross_entropy" and s[count].direction == "backward"


def test_next_and_prev_go_through_all_stops(s):
    for number in range(1, len(s)):
        assert s.next() is s[number] is s.here
    with pytest.raises(
        MiniresError, match=f"there is no event {len(s)}: 0 is the first and {len(s) - 1} the last"
    ):
        s.next()
    assert s.here is s[-1]
    for number in reversed(range(len(s) - 1)):
        assert s.prev() is s[number]
    with pytest.raises(MiniresError, match="there is no event -1"):
        s.prev()
    assert [event.op for event in s[1:4]] == ["conv2d", "batch_norm", "relu"]


def test_goto(s):
    assert s.goto("res3a_branch2b").operation.path == "res3a_branch2b" and s.here.op == "conv2d"
    assert s.goto("res3a").path == "res3a_branch2a"  # a block begins with its first convolution
    operation = s.here.operation
    assert s.back().backward and s.here.operation is operation
    assert s.back() is s.here  # it is there already
    first = s.goto("res3a")  # on the way back a block begins at its end
    assert first.backward and (first.op, first.path) == ("relu", "bn3a_branch2b")
    assert s.goto(operation) is s.here and s.here.backward
    assert s.goto(5) is s[5] and s.goto(s[9]) is s[9]
    assert not s.goto(operation).backward
    with pytest.raises(
        ConfigError, match="there is no module 'res3a_branch2z'; the nearest are res3a_branch"
    ):
        s.goto("res3a_branch2z")
    with pytest.raises(MiniresError, match="there is no event 1000"):
        s.goto(1000)
    assert s.here.operation is operation  # a mistake moves nothing


def test_unknown_names_are_met_with_the_nearest(s):
    with pytest.raises(ConfigError) as caught:
        s.goto("res3a_brunch2a")
    assert str(caught.value).startswith("there is no module 'res3a_brunch2a'; the nearest are res3a_branch2a")
    with pytest.raises(ConfigError, match="no operation 'conv'; the nearest is conv2d"):
        s.find(op="conv")
    with pytest.raises(ConfigError, match="say what to look for"):
        s.find()


def test_find_goes_from_one_to_the_next(s):
    found = [s.find(op="add") for _ in range(9)]
    assert [event.path for event in found][:2] == ["bn2a_branch2b", "bn2b_branch2b"]
    assert s.find(op="add").backward  # then on the way back
    assert s.find(op="conv2d", path="res2a").path == "res2a_branch2b"
    assert s.find(path="bn_conv1").op == "relu" and s.find(path="bn_conv1").op == "batch_norm"
    s.goto(len(s) - 1)
    with pytest.raises(MiniresError, match=f"no add comes after event {len(s) - 1}; those before: "):
        s.find(op="add")
    with pytest.raises(MiniresError, match="there is no linear in res2a"):
        s.find(op="linear", path="res2a")


def test_explain_at_the_stop_where_we_are(s):
    s.goto("res3a_branch2b")
    found = s.explain(n=1, i=3, j=5, o=7)
    assert found.stored == s.here.operation.output[1, 3, 5, 7]
    assert found.result == pytest.approx(found.stored, abs=1e-5)
    number = s.here.number
    s.back()
    with pytest.raises(ConfigError, match=rf"on the way back.*goto\({number}\)"):
        s.explain()
    assert s.goto(number).explain(i=1).place["i"] == 1


def test_a_stop_without_a_gradient():
    def network(x):
        off = x.detach() * 2
        return (x + off).sum()

    s = step(network, np.ones((1, 2)))
    assert [event.op for event in s] == ["input", "mul", "add", "sum", "sum", "add", "input"]
    s.goto(1)
    with pytest.raises(MiniresError, match="no gradient flows through <1 mul"):
        s.back()
    assert "2" in repr(s.here)


def test_what_step_takes():
    loss = (Tensor([1.0, 2.0], requires_grad=True) * 3).sum()
    with pytest.raises(ConfigError, match="a loss is stepped through alone"):
        step(loss, np.ones(2))
    with pytest.raises(ConfigError, match="give a batch"):
        step(ReLU())
    with pytest.raises(ShapeError, match="res2a_branch2a|conv1"):
        step(minires.models.build("resnet20_cifar"), np.ones((1, 8, 8, 5), np.float32))
    assert [event.op for event in step(loss)] == ["input", "mul", "sum", "sum", "mul", "input"]


def test_it_is_imported_on_first_use_only():
    code = (
        "import sys, minires; print('minires.inspect' in sys.modules); "
        "minires.step; print('PIL' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split() == ["False", "False"], run.stderr


# -------------------------------------------------------------------------------------------- cards


def rows(text):
    """The lines of a card's table, by name."""
    return {
        line.split()[0]: line.split()[1:]
        for line in text.splitlines()
        if re.match(r"\w{1,8} +\d+(x\d+)* .*%", line)
    }


def test_a_card_of_a_convolution_has_the_right_numbers(s):
    event = s.goto("res3a_branch2b")
    text, one = repr(s), event.operation
    lines = text.splitlines()
    assert lines[0] == f"event {event.number} of {len(s) - 1}, forward: conv2d res3a_branch2b"
    assert lines[1] == "stage 2 of 4 (16x16), block res3a, training mode"
    assert [line.strip() for line in lines[3:7]] == [
        "y[n, i, j, o] = sum over kh, kw, c of", "x[n, i + kh - top, j + kw - left, c]",
        "* w[kh, kw, c, o]", "with zeros outside the picture",
    ]  # fmt: skip
    assert "  kernel 3x3, stride 1x1, padding 1, dilation 1x1, groups 1" in lines
    table = rows(text)
    assert list(table) == ["x", "w", "y"]
    for name, array in (("x", one.inputs[0].value), ("w", one.inputs[1].value), ("y", one.output)):
        shape, *figures = table[name]
        assert shape == "x".join(map(str, array.shape))
        wanted = [
            array.mean(dtype=float), array.std(dtype=float), 100 * (array == 0).mean(), array.min(),
            array.max(), np.sqrt(np.square(array, dtype=float).sum()),
        ]  # fmt: skip
        assert [float(figure.rstrip("%")) for figure in figures] == pytest.approx(wanted, rel=6e-3, abs=0.06)
    assert f"took {1000 * one.seconds:.2f} ms" in lines
    corner = lines[lines.index("y[0, :4, :6, 0]") + 1 :]
    shown = [[float(value) for value in line.split()] for line in corner]
    assert np.allclose(shown, one.output[0, :4, :6, 0], rtol=1e-4)
    assert f"  x is {one.inputs[0].number} relu bn3a_branch2a" in lines
    assert "  w is the parameter res3a_branch2b.weight" in lines


def test_a_card_of_an_addition_has_the_norms(s):
    one = s.find(op="add").operation
    norms = [np.linalg.norm(array) for array in (*(source.value for source in one.inputs), one.output)]
    line = next(line for line in repr(s).splitlines() if "a join" in line)
    figures = [float(figure) for figure in re.findall(r"\d+\.?\d*", line)]
    assert figures == pytest.approx(norms, rel=6e-3)


def test_a_card_of_a_fork_has_each_contribution_and_the_sum(s):
    fork = s.recording.operations[3]
    forward = repr(s.goto(fork))
    assert "a fork: y is read 2 times, by 4 conv2d res2a_branch2a; 9 add bn2a_branch2b" in forward
    text = repr(s.back())
    lines = text.splitlines()
    start = lines.index("  a fork: dy is the sum of 2 contributions")
    figures = [float(line.split()[-1]) for line in lines[start + 1 : start + 4]]
    parts = [np.linalg.norm(gradient) for _, gradient in fork.contributions]
    assert figures == pytest.approx([*parts, np.linalg.norm(fork.incoming)], rel=6e-3)
    assert [line.split()[1:4] for line in lines[start + 1 : start + 3]] == [
        ["9", "add", "bn2a_branch2b"], ["4", "conv2d", "res2a_branch2a"],
    ]  # fmt: skip
    assert "their sum" in lines[start + 3]


def test_backward_cards_have_every_gradient(s):
    s.goto("fc")
    text, one = repr(s.back()), s.here.operation
    table = rows(text)
    assert list(table) == ["dy", "dx", "dw", "db"]
    for name, array in zip(table, (one.incoming, *one.outgoing), strict=True):
        assert float(table[name][-1]) == pytest.approx(np.linalg.norm(array), rel=6e-3)
    assert "dw goes to the parameter fc.weight" in text and "dx = dy @ w^T" in text
    assert "dy comes from" in text
    last = repr(s.goto(len(s) - 1))
    assert list(rows(last)) == ["dx"] and "dx comes from 1 conv2d conv1" in last


def test_cards_tell_mode_and_guess():
    s = step(minires.models.build("resnet20_cifar").eval(), pictures(1))
    text = repr(s.find(op="cross_entropy"))
    assert "inference mode" in text and "that of the model's own guess" in " ".join(text.split())
    assert "training mode" not in text


def test_a_loss_of_about_zero_is_said_on_the_cards_of_its_gradients():
    model, x = minires.models.build("resnet20_cifar", seed=0).eval(), pictures(1)
    guess = step(model, x).recording.logits.argmax(axis=1)
    for labels, noise in ((None, True), (guess, True), ((guess + 1) % 10, False)):
        s = step(model, x, labels)
        largest = max(np.abs(g).max() for g in s.recording.gradients.values())
        assert s.recording.noise == noise == (largest < 1e-6)
        for event in s:
            sentence = f"loss about 0 ({s.recording.loss:.2g}): the gradients are noise"
            said = sentence in " ".join(repr(event).split())
            assert said == (noise and (event.backward or event.op == "cross_entropy")), event.number


def test_a_loss_of_ones_own_that_is_zero_may_have_gradients():
    assert not step(lambda x: (x - x).sum(), pictures(1)).recording.noise
    sure = Tensor(np.array([[90.0, 0.0]], np.float32), requires_grad=True)
    assert step(cross_entropy(sure, [0])).recording.noise
    assert not step(cross_entropy(sure, [1])).recording.noise


@pytest.mark.parametrize("case", EVERY_CASE)
def test_cards_are_never_wider_than_a_terminal(case):
    first, *others = case.arrays().values()
    tensors = [Tensor(1e-5 * array, requires_grad=True) for array in others]

    def network(x):
        y = case(x, *tensors)
        return mul(y, np.random.default_rng(1).uniform(0.5, 1.5, y.shape)).sum()

    with np.errstate(all="ignore"):
        for event in step(network, first):
            text = repr(event)
            assert max(map(len, text.splitlines())) <= WIDTH and "\n\n\n" not in text
            assert event._repr_html_().startswith("<div><pre")


def test_cards_of_a_real_network_fit_and_say_what_is_not_kept(s):
    for event in s:
        assert max(map(len, repr(event).splitlines())) <= WIDTH
    model = minires.models.build("resnet20_cifar")
    alone = step(cross_entropy(model(Tensor(pictures())), np.array([0, 1])))
    assert "not kept: give the model and x instead" in repr(alone.find(op="linear"))
    for event in alone:
        assert max(map(len, repr(event).splitlines())) <= WIDTH


def test_statistics():
    found = statistics(np.array([[0.0, -3.0], [4.0, 0.0]], np.float32))
    assert found == pytest.approx((0.25, np.std([0, -3, 4, 0]), 0.5, -3, 4, 5))
    assert np.isnan(statistics(np.array([1.0, np.nan])).max) and statistics(np.zeros((0, 2))).norm == 0


# --------------------------------------------------------------------------------------- notebooks


def images(text):
    return [
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    ]


def test_in_a_notebook_there_are_pictures(s):
    s.goto("res3a_branch2b")
    text = s._repr_html_()
    (image,) = images(text)
    assert image.size == (8 * (64 + 2), 2 * (64 + 2)) and "16 of 32 channels of picture 0" in text
    assert "&lt;" not in text and len(text) < 300_000
    both = images(s.back()._repr_html_())
    assert len(both) == 2 and len(images(s.goto("fc")._repr_html_())) == 0
    assert images(s.goto(0)._repr_html_())[0].mode == "RGB"
    assert max(len(event._repr_html_()) for event in s[::10]) < 300_000


def test_the_pictures_show_the_values():
    array = np.zeros((1, 2, 3, 2), np.float32)
    array[0, 0, 1, 0], array[0, 1, 2, 1] = 2.0, -1.0
    png, caption = card.maps(array)
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    side = 64 // 3  # each value is a square of so many pixels
    assert caption == "2 channels of picture 0, from -2 (blue) to 2 (red)"
    assert image[0, side].tolist() == [178, 24, 43] and image[0, 0].tolist() == [255, 255, 255]
    red, green, blue = image[side, 3 * side + 2 + 2 * side].tolist()
    assert blue > green > red  # half as dark a blue
    assert image[0, 3 * side].tolist() == [150, 150, 150]
    picture, caption = card.photograph(np.arange(12.0).reshape(1, 2, 2, 3))
    image = np.asarray(Image.open(io.BytesIO(picture)))
    assert image[0, 0].tolist() == [0, 23, 46] and image[-1, -1].tolist() == [209, 232, 255]
    assert caption == "picture 0, from 0 (black) to 11 (white)"


def test_large_pictures_are_thinned_out_and_names_escaped():
    rng = np.random.default_rng(0)
    png, caption = card.maps(rng.standard_normal((1, 224, 224, 64)))
    assert len(png) < 200_000 and "one of 3 rows and columns" in caption

    class Named(minires.Module):
        def __init__(self):
            super().__init__()
            setattr(self, "<b>&", ReLU())

        def forward(self, x):
            return getattr(self, "<b>&")(x).sum()

    text = step(Named(), rng.standard_normal((1, 2, 2, 3)))[1]._repr_html_()
    assert "&lt;b&gt;&amp;" in text and "<b>" not in text


# ------------------------------------------------------------------------------------- names and reprs


def test_goto_takes_the_name_of_an_operation_and_goes_on_to_the_next_of_it(s):
    additions = [event for event in s if event.op == "add" and not event.backward]
    assert [s.goto("add") for _ in additions] == additions
    assert s.goto("add") is additions[0]  # none after the last: from the start again


def test_goto_stays_on_the_way_where_it_is(s):
    s.goto(-1)
    assert s.goto("add").backward


def test_goto_names_the_nearest_of_both_kinds(s):
    with pytest.raises(ConfigError, match="there is no module 'conv2'; .*conv1.* Nor .* operation; .*conv2d"):
        s.goto("conv2")


@pytest.mark.parametrize("where", [mul, object(), 1.5, None])
def test_goto_of_something_else_says_so_in_a_short_line(s, where):
    with pytest.raises(ConfigError, match="the path of a module or the name of an operation") as caught:
        s.goto(where)
    assert len(str(caught.value)) < 200
    with pytest.raises(ConfigError) as caught:
        s.goto(s.recording)
    assert len(str(caught.value)) < 200


def test_a_number_means_the_same_to_goto_and_in_brackets(s):
    assert s.goto(-1) is s[-1] and s.goto(3) is s[3]
    for number in (len(s), -len(s) - 1):
        for find in (s.goto, s.__getitem__):
            with pytest.raises(MiniresError, match=f"there is no event {number}: 0 is the first and"):
                find(number)


def test_no_repr_of_a_recording_shows_an_array(s):
    operation = s.find(op="conv2d").operation
    for thing in (s.recording, operation, *operation.inputs, s.explain()):
        assert len(repr(thing)) < 100 and "\n" not in repr(thing) and "array" not in repr(thing)


class Shared(minires.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = minires.nn.Sequential(inner=minires.nn.Linear(4, 4))
        self.again = self.first
        self.idle = minires.nn.Linear(4, 4)

    def forward(self, x):
        return self.again(self.first(x))


def test_each_name_of_a_shared_module_leads_to_it():
    s = step(Shared(), np.ones((2, 4), np.float32), [0, 1])
    assert s.goto("again") is s.goto("first")
    assert s.goto("again.inner").path == "first.inner"


def test_a_module_that_did_not_run_is_said_to_be_there():
    s = step(Shared(), np.ones((2, 4), np.float32), [0, 1])
    for look in (s.goto, lambda path: s.find(path=path)):
        with pytest.raises(ConfigError, match="the module 'idle' is there, but no operation ran in it"):
            look("idle")


def test_a_card_in_inference_has_the_running_statistics_and_no_formula_of_training():
    model = minires.models.build("resnet20_cifar", seed=0)
    for training in (True, False):
        walk = step(model.train(training), pictures(), np.array([3, 7]))
        event = walk.find(op="batch_norm")
        text, back, explained = repr(event), repr(walk.back()), str(event.explain(c=3))
        running = ["running_mean", "running_var"] if not training else []
        names = re.findall(r"^(\w+) +\d+(?:x\d+)* .*%", text, re.M)
        assert names == ["x", "gamma", "beta", *running, "y"]
        assert ("  after this call: running_mean (16 array), running_var (16 array)" in text) == training
        assert ("convention torch, running_mean" in " ".join(text.split())) != training
        for name in running:
            array = event.operation.options[name]
            line = next(line for line in text.splitlines() if line.startswith(name))
            assert line.split()[1:3] == [str(array.size), f"{array.mean():.3g}"]
            assert f"  {name} is an option of this call, and no gradient flows to it" in text
        assert ("mean(x, batch)" in text, "mean = running_mean" in text) == (training, not training)
        assert ("mean(x, batch)" in explained, "running_mean" in explained) == (training, not training)
        assert ("slope" in back) == training and "running" not in back.split("\n\n")[1].split("training")[0]
        assert max(map(len, text.splitlines())) <= WIDTH


def test_a_batch_norm_that_is_frozen_has_the_formula_of_inference_in_training():
    model = minires.nn.Sequential(norm=minires.nn.BatchNorm2d(3), flat=minires.nn.GlobalAvgPool2d())
    model.norm.frozen = True
    text = repr(step(model.train(), pictures(), np.array([0, 1])).find(op="batch_norm"))
    assert "training mode" in text and "mean = running_mean" in text and "mean(x" not in text


@pytest.mark.parametrize("training", [True, False])
def test_cards_of_a_tape_are_of_the_fused_calls_that_stand_on_it(training):
    """With the epilogues that a recorded model runs as steps of their own, and values that were not kept."""
    nn, rng = minires.nn, np.random.default_rng(0)
    model = nn.Sequential(
        conv=nn.Conv2d(3, 4, 3, relu=True, rng=rng), norm=nn.BatchNorm2d(4, relu=True),
        pool=nn.GlobalAvgPool2d(), dense=nn.Linear(4, 3, bias=False, rng=rng),
    )  # fmt: skip
    loss = cross_entropy(model.train(training)(Tensor(pictures())), [0, 2], label_smoothing=0.1)
    cards = {(event.op, event.backward): repr(event) for event in step(loss)}
    assert "b[o] +" in cards["conv2d", False] and "then y = max(y, 0)" in cards["conv2d", False]
    assert "dy is taken as 0 where y is not above 0" in cards["conv2d", True]
    assert "y = max(gamma * xhat + beta, 0)" in cards["batch_norm", False]
    assert ("mean = mean(x, batch)" in cards["batch_norm", False]) == training
    assert ("slope" in cards["batch_norm", True]) == training and "(y > 0)" in cards["batch_norm", True]
    assert "y = x @ w\n" in cards["linear", False] and "db" not in cards["linear", True]
    of_loss = cards["cross_entropy", False]
    assert "label_smoothing / K" in of_loss and "weight" not in of_loss


def test_a_changed_model_is_stepped_through_and_every_card_says_what_was_changed():
    model = minires.models.build("resnet20_cifar", seed=0).eval()
    x, y = pictures(), np.array([3, 7])
    plain = step(model, x, y)
    changes = {"res3b": "drop", "res4a.shortcut": 0.5}
    s = step(model, x, y, changes=changes)
    said = ("res3b: dropped: its shortcut + 0 x its branch", "res4a.shortcut: 0.5 x the shortcut")
    assert s.recording.changes == said and plain.recording.changes == ()
    assert [one.chinese for one in s.recording.changes] == [
        "res3b：去掉：捷径 + 0 × 分支", "res4a.shortcut：捷径 × 0.5"
    ]  # fmt: skip
    assert all(f"changed: {one}" in repr(s[n]) for one in said for n in (0, 5, -1))
    assert "changed" not in repr(plain[0]) and "changed" in repr(s.recording)
    with minires.intervene(model, changes):
        again = step(model, x, y).recording
        assert again.changes == said and again.loss == s.recording.loss
        loss = cross_entropy(model(Tensor(x)), y)
    assert loss.item() == pytest.approx(s.recording.loss, rel=1e-5) != plain.recording.loss
    with pytest.raises(ConfigError, match="no operation ran in it"):
        s.goto("res3b_branch2a")
    times = [event for event in s if event.op == "mul"]
    assert {event.path for event in times} == {"res4a"} and len(times) == 2  # forward and back
    assert "res3b_branch2a.weight" in plain.recording.gradients
    assert "res3b_branch2a.weight" not in s.recording.gradients
    assert (model(Tensor(x)).data == plain.recording.logits).all() or model(Tensor(x)).shape == (2, 10)
    many = step(model, x, y, changes={f"conv1[{n}]": 0 for n in range(5)})
    assert "changed: and 2 more" in repr(many[0])


def test_changes_are_of_a_model():
    x = pictures()
    with pytest.raises(ConfigError, match="this is a function"):
        step(lambda x: x.mean(), x, changes={"a": 0})
    with pytest.raises(ConfigError, match="leave x, y and changes out"):
        step((Tensor([1.0], requires_grad=True) * 2).sum(), changes={"a": 0})


def test_the_picture_of_a_short_vector_has_a_colour_for_its_largest_number():
    vector = np.array([0.5, 24.8, 12.2, 3.0], np.float32).reshape(1, 1, 1, 4)
    png, caption = card.maps(vector)
    sheet = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)
    assert sheet.shape[1] == 4 * 66  # four maps and the gaps between them
    red = sheet[2, 2::66, 0] - sheet[2, 2::66, 2]
    assert np.argsort(red).tolist() == [0, 3, 2, 1] and red[1] > 1.5 * red[2] and "24.8" in caption
