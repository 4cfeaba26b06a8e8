"""The trace page: what is packed equals what was recorded, and a browser shows it, step by step."""

from __future__ import annotations

import base64
import itertools
import json
import math
import os
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, screenshot, watched

import minires
from minires import data, models, nn
from minires.debug.recording import record_passes
from minires.debug.trace_page import pack, trace, trace_html
from minires.errors import ConfigError, DataError, MiniresError, ShapeError
from minires.ops.avg_pool2d import global_avg_pool2d
from minires.ops.concat import concat
from minires.ops.cross_entropy import cross_entropy
from minires.ops.pad import pad
from minires.ops.registry import described
from minires.tensor import Tensor

HOSTILE = "</script><b>bold</b>&<img src=x onerror=alert(1)>"
PLACE = r"(?:channel (\d+), row (\d+), column (\d+)|(\d+))$"


def picture(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)


def normal(image: np.ndarray) -> np.ndarray:
    return ((image / 255 - 0.5) / 0.25).astype(np.float32)


class Packed:
    """What lies in a page, unpacked here by other code than the page's own."""

    def __init__(self, page: bytes) -> None:
        found = re.findall(r'<script type="text/plain" id="chunk(\d+)">([^<]*)</script>', page.decode())
        assert [int(number) for number, _ in found] == list(range(len(found)))
        chunks = [zlib.decompress(base64.b64decode(text)) for _, text in found]
        self.table = json.loads(chunks[0])
        parts = [np.frombuffer(chunk, np.uint8).reshape(4, -1).T.copy() for chunk in chunks[1:]]
        self.numbers = [part.view("<f4")[:, 0] for part in parts]

    def array(self, number: int) -> np.ndarray:
        chunk, start, shape = self.table["arrays"][number]
        return self.numbers[chunk][start : start + math.prod(shape)].reshape(shape)


class Branches(nn.Sequential):
    """Operations that the networks of the other tests do not have, with a fork of three."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, rng=rng)
        self.grouped = nn.Conv2d(8, 8, (3, 2), stride=2, padding="same", groups=4, bias=False, rng=rng)
        self.pooled = nn.AvgPool2d(3, stride=2, padding=1)
        self.largest = nn.MaxPool2d(3, stride=2, padding=1)
        self.gate = nn.SqueezeExcitation(8, reduction=2, rng=rng)
        self.last = nn.Conv2d(16, 4, 1, rng=rng)
        self.dense = nn.Linear(4, 3, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.gate(self.grouped(x)) + self.largest(x) * 0.5
        y = concat([y, self.pooled(x) - y])
        return self.dense(global_avg_pool2d(pad(self.last(y), 1)))


class OwnLoss(nn.Sequential):
    """A model that returns its loss, with label smoothing, of a dense layer and dropout."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(nn.Flatten(), nn.Dropout(0.4), nn.Linear(75, 4, rng=rng))

    def forward(self, x: Tensor) -> Tensor:
        return cross_entropy(super().forward(x), np.array([1]), label_smoothing=0.2)


def branches() -> tuple[Any, np.ndarray]:
    return Branches(np.random.default_rng(0)), normal(picture(11))


def little() -> tuple[Any, np.ndarray]:
    """A ResNet-20 with running statistics that differ from 0 and 1, and an eps that counts."""
    model = models.build("resnet20_cifar", classes=10, seed=0, bn_eps=0.1).train()
    x = np.stack([normal(picture(16, seed)) for seed in range(8)])
    for _ in range(3):
        model(Tensor(x))
    model.fc.weight.data *= 0.1  # so that no probability is nearly 1, which leaves no gradient to look at
    return model.eval(), normal(picture(16))


# ------------------------------------------------------------------------------------------- what is packed


@pytest.mark.parametrize("make", [little, branches])
@pytest.mark.parametrize("plan", [(16, None), (3, 5), (1, 1)])
def test_what_is_packed_is_what_was_recorded(make, plan, monkeypatch):
    monkeypatch.setattr(pack, "PLANS", [plan])
    model, x = make()
    recording = record_passes(model, x[None], np.array([2]))
    packed = Packed(trace_html(model, x, 2))
    assert packed.table["label"] == 2 and packed.table["loss"] == pytest.approx(recording.loss)
    assert packed.table["back"] == list(recording.order_back)
    for one, said in zip(recording.operations, packed.table["operations"], strict=True):
        kept, shown = said["kept"], said["kept"][: said["shown"]]
        assert (said["op"], said["path"], tuple(said["shape"])) == (one.op, one.path, one.output.shape)
        assert 1 <= len(shown) <= len(kept) and len(set(kept)) == len(kept)
        for name, array, channels in (("output", one.output, kept), ("incoming", one.incoming, shown)):
            np.testing.assert_array_equal(packed.array(said["arrays"][name]), planes(array, channels))
        parts = [packed.array(part["array"]) for part in said["contributions"]]
        assert [part["from"] for part in said["contributions"]] == [number for number, _ in one.contributions]
        if parts:
            np.testing.assert_allclose(sum(parts), planes(one.incoming, shown), rtol=1e-4, atol=1e-6)
        size = said["size"]
        assert size["norm"] == pytest.approx(np.linalg.norm(one.output.astype(np.float64)))
        assert size["zeros"] == pytest.approx(np.mean(one.output == 0))


def planes(array: np.ndarray, channels: list[int]) -> np.ndarray:
    flat = array[0].transpose(2, 0, 1) if array.ndim == 4 else array.reshape(-1, 1, 1)
    return flat[channels].astype(np.float32)


@pytest.mark.parametrize("make", [little, branches])
@pytest.mark.parametrize("plan", [(16, None), (3, 5)])
def test_products_and_the_rest_make_the_recorded_output(make, plan, monkeypatch):
    """Place by place, with the window taken out of the padded picture and not slid over it."""
    monkeypatch.setattr(pack, "PLANS", [plan])
    model, x = make()
    recording = record_passes(model, x[None], np.array([2]))
    packed = Packed(trace_html(model, x, 2))
    rests = 0
    for one in recording.operations:
        if one.op not in ("conv2d", "linear"):
            continue
        said = packed.table["operations"][one.number]
        source = packed.table["operations"][one.inputs[0].number]
        values = packed.array(source["arrays"]["output"]).astype(np.float64)
        arrays = said["arithmetic"]["arrays"]
        kernel = packed.array(arrays["kernel"])
        (top, bottom), (left, right) = one.options.get("padding", ((0, 0), (0, 0)))
        padded = np.pad(values, ((0, 0), (top, bottom), (left, right)))
        (sh, sw), (kh, kw) = one.options.get("stride", (1, 1)), kernel.shape[2:]
        height, width = one.output.shape[1:3] if one.output.ndim == 4 else (1, 1)
        for (d, o), i, j in itertools.product(enumerate(said["detail"]), range(height), range(width)):
            window = padded[:, i * sh : i * sh + kh, j * sw : j * sw + kw]
            total = float((window * kernel[d]).sum())
            if "rest" in arrays:
                rests += 1
                total += float(packed.array(arrays["rest"])[d, i, j])
            if "bias" in arrays:
                total += float(packed.array(arrays["bias"])[d, 0, 0])
            recorded = one.output[0, i, j, o] if one.output.ndim == 4 else one.output[0, o]
            assert total == pytest.approx(float(recorded), rel=1e-4, abs=1e-4), (one, i, j, o)
    assert (rests > 0) == (plan != (16, None))


def test_a_channel_is_followed_through_a_stage():
    model, x = little()
    table = Packed(trace_html(model, x)).table
    shown = {}
    for one in table["operations"]:
        if len(one["shape"]) == 4:
            shown.setdefault(one["family"], set()).add(tuple(one["kept"][: one["shown"]]))
    assert all(len(choices) == 1 for choices in shown.values())
    trunks = [one["family"] for one in table["operations"] if one["op"] == "add"]
    assert len(set(trunks)) == 3  # one for each stage


def test_blocks_are_those_of_the_model():
    model, x = little()
    blocks = Packed(trace_html(model, x)).table["blocks"]
    names = [f"res{stage}{block}" for stage in (2, 3, 4) for block in "abc"]
    assert [block["name"] for block in blocks] == ["", "conv1", "bn_conv1", *names, "avg_pool", "fc", ""]
    assert [block["name"] for block in blocks if block["joins"]] == names
    numbers = [number for block in blocks for number in block["operations"]]
    assert numbers == list(range(len(numbers)))


def test_equal_arrays_are_kept_once():
    model, x = little()
    packed = Packed(trace_html(model, x))
    arrays = [packed.array(number) for number in range(len(packed.table["arrays"]))]
    assert len({(array.shape, array.tobytes()) for array in arrays}) == len(arrays)


def test_a_page_has_as_many_channels_as_fit(monkeypatch):
    model, x = little()
    sizes = {}
    for limit in (15_000_000, 700_000, 400_000):
        monkeypatch.setitem(trace_html.__globals__, "LIMIT", limit)
        page = trace_html(model, x)
        assert len(page) <= limit
        sizes[limit] = Packed(page).table["channels"]
    assert 16 == sizes[15_000_000] > sizes[700_000] > sizes[400_000] >= 1
    monkeypatch.setitem(trace_html.__globals__, "LIMIT", 150_000)
    with pytest.raises(MiniresError, match="MB.*smaller"):
        trace_html(model, x)


def test_without_a_label_the_loss_is_that_of_the_guess():
    model, x = little()
    table = Packed(trace_html(model, x)).table
    logits = record_passes(model, x[None]).logits[0].astype(np.float64)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert table["guessed"] and table["label"] == table["guess"]["label"] == logits.argmax()
    assert table["guess"]["probability"] == pytest.approx(shares.max())
    assert table["loss"] == pytest.approx(-math.log(shares.max()), rel=1e-5)


def test_a_label_may_be_probabilities():
    model, x = little()
    target = np.linspace(0, 0.2, 10, dtype=np.float32)
    target /= target.sum()
    packed = Packed(trace_html(model, x, target))
    last = packed.table["operations"][-1]
    assert packed.table["label"] == 9 and not packed.table["guessed"]
    given = packed.array(last["arithmetic"]["operands"]["target"]["array"])
    np.testing.assert_allclose(given[0], target, rtol=1e-6)


def test_the_model_is_left_as_it_was():
    model = models.build("resnet20_cifar", classes=10, seed=0)
    before = model.state_dict()
    trace_html(model, normal(picture(16)), 3)
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters()) and model.training


def test_the_page_says_what_was_changed_in_both_languages():
    model, x = little()
    plain = Packed(trace_html(model, x, 3))
    assert plain.table["changes"] == []
    kept = minires.activations(model, x[None], ["res2c"])["res2c"]
    changes = {"res3b": "drop", "res4a.shortcut": 0.5, "swap": ("res4b", "res4c"), "res2c": kept}
    page = trace_html(model, x, 3, changes=changes)
    table = Packed(page).table
    assert table["changes"][:2] == [
        ["res3b: dropped: its shortcut + 0 x its branch", "res3b：去掉：捷径 + 0 × 分支"],
        ["res4a.shortcut: 0.5 x the shortcut", "res4a.shortcut：捷径 × 0.5"],
    ]
    assert len(table["changes"]) == 5 and not any("尚未" in chinese for _, chinese in table["changes"])
    with minires.intervene(model, changes):
        right = record_passes(model, x[None], np.array([3]))
    assert float(table["loss"]) == pytest.approx(right.loss, rel=1e-5)
    paths = [operation["path"] for operation in table["operations"]]
    assert "conv1" not in paths and "res3b_branch2a" not in paths
    assert paths.index("res4c_branch2a") < paths.index("res4b_branch2a")
    assert b"changed: {change}" in page and "已改动：{change}".encode() in page


def test_numbers_that_are_not_finite_are_packed():
    model, x = little()
    model.conv1.weight.data[0, 0, 0, 0] = np.nan
    table = Packed(trace_html(model, x, 1)).table
    assert table["loss"] == "NaN" and table["operations"][1]["size"]["max"] == "NaN"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": np.zeros((2, 16, 16, 3), np.float32)}, ShapeError, "one picture"),
        ({"x": np.zeros((16, 3), np.float32)}, ShapeError, "one picture"),
        ({"picture": np.zeros((16, 16, 3), np.float32)}, ShapeError, "uint8"),
        ({"classes": ["a", "b"]}, ConfigError, "2 classes are named, but the model gives 10"),
        ({"y": 10}, DataError, "10 classes"),
        ({"out": "/nowhere/at/all/t.html"}, MiniresError, "cannot write"),
    ],
)
def test_what_does_not_fit_is_said(change, error, words, tmp_path):
    model, x = little()
    arguments = {"x": x, "y": 1, "out": tmp_path / "t.html", **change}
    with pytest.raises(error, match=words):
        trace(model, **arguments)
    assert not list(tmp_path.iterdir())


def test_nothing_from_outside_becomes_markup():
    model, x = little()
    page = trace_html(model, x, name=HOSTILE + "{{script}}{{data}}", classes=[HOSTILE] * 10).decode()
    assert "<b>" not in page and "<img" not in page and page.count("{{script}}") == 1
    table = Packed(page.encode()).table
    assert table["name"] == HOSTILE + "{{script}}{{data}}" and table["classes"] == [HOSTILE] * 10
    scripts = re.findall(r"<script[^>]*>", page)
    assert len(scripts) == page.count("</script>") == len(table["operations"]) + 2
    assert set(re.findall(r"https?://[^\"'` ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'; script-src 'sha256-" in page and "unsafe" not in page


# --------------------------------------------------------------------------------------------- in a browser

READ = """() => {
  const text = (one) => (one ? one.textContent : null);
  const main = document.getElementById("step");
  const row = main.querySelector(".statistics tr[data-of=y], .statistics tr[data-of=dy]");
  const number = (name) => Number(text(row.querySelector(`[data-name=${name}]`)));
  const part = (one) => [one.dataset.part, text(one.querySelector("[data-name=norm]"))];
  return {
    event: Number(main.dataset.event), path: text(document.getElementById("path")),
    op: text(main.querySelector(".op")), norm: number("norm"), mean: number("mean"),
    parts: [...main.querySelectorAll(".fork figure")].map(part),
  };
}"""
# Point at three places of every picture that explains its numbers.
POINT = """() => [...document.querySelectorAll(".points canvas")].flatMap((canvas) => {
  const box = canvas.getBoundingClientRect();
  const read = (selector) => {
    const one = document.querySelector(selector);
    return one && one.textContent;
  };
  return [[0.52, 0.52], [0.02, 0.97], [0.35, 0.2]].map(([x, y]) => {
    const place = { clientX: box.left + x * box.width, clientY: box.top + y * box.height };
    canvas.dispatchEvent(new PointerEvent("pointermove", place));
    const results = ["#place", "[data-result=total]", "[data-result=recorded]"].map(read);
    return [canvas.closest(".panel").dataset.key, ...results];
  });
})"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


class Opened:
    """A page in a browser, and the recording it was made of."""

    def __init__(self, browser: Any, content: bytes, folder: Path, **options: Any) -> None:
        (folder / "trace.html").write_bytes(content)
        options = {"viewport": {"width": 1400, "height": 1000}, **options}
        self.page, self.errors, self.requests = watched(browser, **options)
        self.page.goto((folder / "trace.html").as_uri())
        self.shown(0)

    def shown(self, event: int) -> None:
        self.page.wait_for_selector(f'main[data-event="{event}"]', timeout=20_000)

    def press(self, key: str, event: int) -> None:
        self.page.keyboard.press(key)
        self.shown(event)

    def go(self, event: int) -> None:
        self.page.locator("#position").fill(str(event))
        self.shown(event)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def until(self, selector: str, text: str) -> None:
        """Wait until this is what stands there."""
        self.page.locator(selector).filter(has_text=re.compile(f"^{re.escape(text)}$")).first.wait_for()

    def close(self) -> None:
        """Nothing was said on the console, and nothing was asked for but the page itself."""
        assert self.errors == [] and len(self.requests) == 1
        self.page.context.close()


def recorded_at(recording: Any, key: str, place: str) -> tuple[float | None, float]:
    """The number that a panel shows at a place (of a kernel, None), and the largest of all of them."""
    kind, number, put = re.match(r"([a-z_]+)(\d+)(?:\.(\d+))?$", key).groups()
    one = recording.operations[int(number)]
    if kind == "kernel":
        array = one.inputs[1].value
    elif kind.endswith("_gradient"):
        name = kind.removesuffix("_gradient")
        array = one.outgoing[1 if name == "kernel" else one.names.index(name)]
    elif put is not None:
        array = one.outgoing[int(put)]
    else:
        array = {"y": one.output, "dy": one.incoming}[kind]
    largest = float(np.abs(array).max())
    if kind.startswith("kernel"):
        return None, largest
    channel, i, j, alone = re.search(PLACE, place).groups()
    value = array.reshape(-1)[int(alone)] if alone else array[0, int(i), int(j), int(channel)]
    return float(value), largest


def check_points(opened: Opened, recording: Any) -> dict[str, int]:
    """What the page says of some places of each picture; how many had their arithmetic, by kind."""
    done: dict[str, int] = {}
    for key, place, total, recorded in opened.page.evaluate(POINT):
        expected, largest = recorded_at(recording, key, place)
        if expected is not None:
            assert float(recorded) == pytest.approx(expected, rel=1e-5, abs=1e-12), (key, place)
        if total is not None:
            # Sums are made in another order and in float64; what cancels leaves float32's rounding.
            assert float(total) == pytest.approx(float(recorded), rel=1e-4, abs=2e-5 * largest), (key, place)
            kind = re.match("[a-z_]+", key)[0]
            done[kind] = done.get(kind, 0) + 1
    return done


def test_every_step_forward_and_back_shows_what_was_recorded(browser, tmp_path):
    model, x = little()
    recording = record_passes(model, x[None], np.array([3]))
    opened = Opened(browser, trace_html(model, x, 3, name="little"), tmp_path)
    ways = [("y", n) for n in range(len(recording.operations))] + [("dy", n) for n in recording.order_back]
    done: dict[str, int] = {}

    def check(event: int) -> None:
        way, number = ways[event]
        one, said = recording.operations[number], opened.page.evaluate(READ)
        array = np.asarray(one.output if way == "y" else one.incoming, np.float64)
        assert (said["event"], said["op"]) == (event, one.op) and one.path in said["path"]
        assert said["norm"] == pytest.approx(np.linalg.norm(array), rel=6e-5)
        assert said["mean"] == pytest.approx(array.mean(), rel=6e-5, abs=1e-6)
        if way == "dy" and len(one.contributions) > 1:
            sizes = [np.linalg.norm(part.astype(np.float64)) for _, part in one.contributions]
            norms = list(zip([str(source) for source, _ in one.contributions], sizes, strict=True))
            assert [name for name, _ in said["parts"]] == [*(name for name, _ in norms), "sum"]
            for (_, text), (_, norm) in zip(said["parts"], norms, strict=False):
                assert float(text.removeprefix("norm ")) == pytest.approx(norm, rel=1e-5)
        else:
            assert said["parts"] == []

    check(0)
    for event in range(1, len(ways)):
        opened.press("ArrowRight", event)
        check(event)
        for kind, count in check_points(opened, recording).items():
            done[kind] = done.get(kind, 0) + count
    for event in reversed(range(len(ways) - 1)):
        opened.press("ArrowLeft", event)
        check(event)
    # 19 convolutions, 19 batch norms, 19 ReLUs, 9 additions, 2 shortcuts A, pool, dense layer, loss: 71. Only
    # 16 of the 64 means that the pool makes have their arithmetic here.
    assert len(ways) == 2 * 72 and done["y"] >= 3 * 70 and done["dx"] == 3 * (71 + 9)
    assert done["kernel_gradient"] == 3 * 20 and done["gamma_gradient"] == done["beta_gradient"] == 3 * 19
    opened.close()


def test_operations_of_other_networks_are_explained(browser, tmp_path):
    model, x = branches()
    recording = record_passes(model, x[None], np.array([1]))
    opened = Opened(browser, trace_html(model, x, 1), tmp_path)
    explained = set()
    for event in range(2 * len(recording.operations)):
        opened.go(event)
        op = opened.text(".op")
        explained |= {(op, kind) for kind in check_points(opened, recording)}
    for op in (
        "conv2d", "linear", "max_pool2d", "avg_pool2d", "concat", "sub", "add", "mul", "pad", "sigmoid",
        "reshape", "cross_entropy",
    ):  # fmt: skip
        assert {(op, "y"), (op, "dx")} <= explained, op
    opened.close()


# The colours of the numbers in each picture of a kind; a place without a number is transparent.
COLOURS = """(selector) => [...document.querySelectorAll(selector)].map((canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const cells = Array.from({ length: data.length / 4 }, (_, at) => [...data.slice(4 * at, 4 * at + 4)]);
  return cells.filter((cell) => cell[3] === 255).map((cell) => cell.slice(0, 3));
})"""
SCORES = [12.2, 24.8, -3.0, 0.5, -12.0, 6.1, 1.0, -0.25, 0.0, -6.0]


@pytest.mark.parametrize("count", [2, 3, 10, 150])
def test_the_largest_number_of_a_list_has_a_colour_of_its_own(browser, tmp_path, count):
    dense = nn.Linear(12, count, rng=np.random.default_rng(0))
    scores = np.resize(SCORES, count) / (1 + np.arange(count) // 10)
    dense.weight.data, dense.bias.data = 0 * dense.weight.data, scores.astype(np.float32)
    model, x = nn.Sequential(nn.Flatten(), dense), normal(picture(2))
    recording = record_passes(model, x[None], np.array([0]))
    opened = Opened(browser, trace_html(model, x, 0), tmp_path)
    for event, key in ((2, "y"), (5, "dy")):
        opened.go(event)
        one = recording.operations[2]
        values = (one.output if key == "y" else one.incoming)[0].astype(np.float64)
        (colours,) = np.array(opened.page.evaluate(COLOURS, f'[data-panel="{key}"] .large canvas'), float)
        assert opened.text(".op") == "linear" and len(colours) == count
        sizes, white = abs(values), colours[abs(values).argmin()]
        for sign in (1, -1):  # those below zero are blue, those above orange
            these = np.flatnonzero(np.sign(values) == sign)
            order = these[np.argsort(sizes[these])]
            strength = abs(colours[order] - white).sum(axis=1)
            steps, apart = np.diff(strength), np.diff(sizes[order]) > 0.02 * sizes.max()
            assert (steps[apart] > 0).all() and (steps >= -3).all(), (key, values[order], strength)
    opened.close()


def test_a_part_of_a_fork_that_is_larger_than_the_sum_is_not_clipped(browser, tmp_path):
    class Cancels(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            return x * 3.0 - x * 2.0

    model = Cancels(nn.Flatten(), nn.Linear(12, 3, rng=np.random.default_rng(0)))
    recording = record_passes(model, normal(picture(2))[None], np.array([1]))
    opened = Opened(browser, trace_html(model, normal(picture(2)), 1), tmp_path)
    fork = next(one for one in recording.operations if len(one.contributions) == 2)
    count = len(recording.operations)
    opened.go(count + list(recording.order_back).index(fork.number))
    found = [np.ptp(np.array(one), axis=1).max() for one in opened.page.evaluate(COLOURS, ".fork canvas")]
    assert len(set(found)) == 3 and min(found) == found[-1], found  # 3 and -2 times a gradient, and the sum
    opened.close()


def test_a_page_says_of_each_call_what_it_computes(browser, tmp_path):
    """In inference a batch norm has its running statistics, and no formula of training."""
    model, x = little()
    for training in (False, True):
        content = trace_html(model.train(training), x, 3)
        opened = Opened(browser, content, tmp_path)
        opened.go(first(content, "conv2d"))
        assert "b[o]" not in opened.text(".formula")
        opened.go(first(content, "batch_norm"))
        formula, rows = opened.text(".formula"), opened.page.locator(".statistics tbody tr")
        names = rows.evaluate_all("(found) => found.map((row) => row.dataset.of)")
        running = ["running_mean", "running_var"]
        assert names == ["x", "gamma", "beta", *(running if not training else []), "y"]
        assert ("mean(x, batch)" in formula, "mean = running_mean" in formula) == (training, not training)
        assert ("this batch" in opened.text(".does")) == training
        opened.page.locator("#backward").click()
        opened.page.wait_for_selector("main h2.backward")
        assert ("slope" in opened.text(".formula")) == training
        assert ("two more terms" in opened.text(".does")) == training
        opened.page.locator("#language").click()
        opened.page.wait_for_selector("html[lang=zh]")
        assert ("多出两项" in opened.text(".does")) == training
        opened.close()


def test_a_page_says_whose_label_it_is_and_where_gradients_are_noise(browser, tmp_path):
    model, x = models.build("resnet20_cifar", seed=0).eval(), normal(picture(16))
    best, second = np.argsort(-record_passes(model, x[None]).logits[0])[:2]
    classes = [f"name{k}" for k in range(10)]
    for label, chosen, noise in ((None, True, False), (best, False, True), (second, False, False)):
        opened = Opened(browser, trace_html(model, x, label, classes=classes), tmp_path)
        about, notes = opened.text("#about"), opened.text("#notes")
        assert (f"as if name{second} were right" in about) == chosen
        assert ("the class that the model finds second best" in notes) == chosen
        assert (f"label: name{label}" in about) == (label is not None)
        assert ("the gradients are noise" in notes) == noise
        assert opened.page.locator(".noise").count() == 0
        opened.press("End", 143)
        assert opened.page.locator(".noise").count() == noise
        opened.page.locator("#language").click()
        opened.page.wait_for_selector("html[lang=zh]")
        assert ("噪声" in opened.text("#notes")) == noise
        opened.close()


def first(content: bytes, op: str) -> int:
    return next(k for k, one in enumerate(Packed(content).table["operations"]) if one["op"] == op)


def test_a_model_that_returns_its_loss(browser, tmp_path):
    model, x = OwnLoss(np.random.default_rng(0)), normal(picture(5))
    opened = Opened(browser, trace_html(model, x), tmp_path)
    state = model.random_states()
    recording = record_passes(model, x[None])
    assert model.random_states() == state  # so dropout's mask is the one of the page
    explained = set()
    for event in range(10):
        opened.go(event)
        explained |= {(opened.text(".op"), kind) for kind in check_points(opened, recording)}
    assert {(op, kind) for op in ("dropout", "cross_entropy", "flatten") for kind in ("y", "dx")} <= explained
    assert opened.text("#about").startswith("loss ") and "training mode" in opened.text("#about")
    opened.close()


def test_a_pixel_that_is_pointed_at_shows_its_window(browser, tmp_path):
    """With a real pointer and with the keyboard, on a convolution."""
    model, x = little()
    recording = record_passes(model, x[None])
    opened = Opened(browser, trace_html(model, x), tmp_path)
    opened.press("ArrowRight", 1)
    large = opened.page.locator('[data-panel="y"] .large canvas')
    box = large.bounding_box()
    cell = box["width"] / 16
    large.hover(position={"x": 5.5 * cell, "y": 2.5 * cell})
    channel, i, j = map(int, re.search(PLACE, opened.text("#place")).groups()[:3])
    assert (i, j) == (2, 5)
    assert float(opened.text("[data-result=recorded]")) == pytest.approx(
        float(recording.operations[1].output[0, 2, 5, channel]), rel=1e-5
    )
    windows = opened.page.locator(".window")
    assert windows.count() == 3  # of the three colours
    for index in range(3):
        label = windows.nth(index).locator(".label").inner_text()
        colour = int(re.search(r"channel (\d+)", label)[1])
        cells = windows.nth(index).locator(".matrix").nth(0).locator("td").all_inner_texts()
        np.testing.assert_allclose(np.array(cells, float), x[1:4, 4:7, colour].reshape(-1), rtol=6e-3)
        kernel = windows.nth(index).locator(".matrix").nth(1).locator("td").all_inner_texts()
        weights = model.conv1.weight.data[:, :, colour, channel]
        np.testing.assert_allclose(np.array(kernel, float), weights.reshape(-1), rtol=6e-3)
    mark = opened.page.locator('[data-panel="x"] .mark')
    assert [mark.get_attribute(name) for name in ("x", "y", "width", "height")] == ["4", "1", "3", "3"]
    opened.page.mouse.move(0, 0)
    opened.page.keyboard.press("m")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        opened.page.keyboard.press(key)
    assert opened.text("#place").endswith("row 3, column 7")
    opened.page.keyboard.press("]")
    place = opened.text("#place")
    assert f"channel {channel}," not in place and place.endswith("row 3, column 7")
    opened.page.keyboard.press("Escape")
    opened.press("ArrowRight", 2)  # the keys lead from step to step again
    opened.close()


def test_map_search_plot_keys_and_languages(browser, tmp_path):
    model, x = little()
    opened = Opened(browser, trace_html(model, x, 3, classes=[HOSTILE, *"abcdefghi"], name=HOSTILE), tmp_path)
    page = opened.page
    assert opened.text("#name") == HOSTILE and page.locator("b").count() == 0
    # Search, by keyboard alone.
    page.keyboard.press("/")
    page.keyboard.type("res3b_branch2b")
    page.keyboard.press("Enter")
    opened.until("#path", "res3b_branch2b")
    here = page.locator("#map [aria-current=step]")
    assert here.get_attribute("aria-label") == "Go to res3b_branch2b · conv2d"
    page.keyboard.press("/")
    page.keyboard.type("no such thing")
    assert opened.text("#found") == "Nothing has this in its name"
    page.keyboard.press("Escape")
    # The map: a stage opens, a block in it, and an operation in that.
    stage = page.locator("#map [data-key='stage 2']")
    assert stage.get_attribute("aria-expanded") == "false"
    stage.click()
    page.locator("#map [aria-label^='res4c, closed']").focus()
    page.keyboard.press("Enter")
    assert page.locator("#map [aria-label^='res4c, open']").get_attribute("aria-expanded") == "true"
    page.locator("#map [aria-label='Go to bn4c_branch2b · add']").click()
    opened.until(".op", "add")
    assert page.locator("#map path.skip").count() >= 1
    # The other direction, at the same operation, and the ends.
    page.keyboard.press("b")
    page.wait_for_selector("main h2.backward")
    assert opened.text(".op") == "add" and page.locator("#backward").get_attribute("aria-pressed") == "true"
    opened.press("Home", 0)
    opened.press("End", 143)
    assert page.locator("#next").is_disabled() and opened.text("#event") == "Event 144 of 144, Backward"
    page.locator("#plot svg").click(position={"x": 3, "y": 20})
    opened.until(".op", "input")
    # Play goes on by itself until it is stopped.
    opened.press("Home", 0)
    page.keyboard.press("Space")
    opened.shown(1)
    page.keyboard.press("Space")
    # Chinese, and help.
    page.keyboard.press("l")
    page.wait_for_selector("html[lang=zh]")
    opened.until("main h2", "卷积 conv1 conv2d")
    assert opened.text("#event").endswith("前向") and opened.text("#mapbox summary") == "网络"
    page.keyboard.press("?")
    assert "下一步" in opened.text("#keys")
    page.keyboard.press("Escape")
    opened.close()


def test_every_label_has_two_languages():
    """The words of the page: a list of as many texts each, with the same places for values."""
    folder = Path(pack.__file__).parent / "page"
    source = (folder / "words.js").read_text(encoding="utf-8")
    labels = source[source.index("const LABELS") : source.index("const KEYS")]
    entries = re.findall(r"^  (\w+): \[(.*?)\],$", labels, re.M | re.S)
    assert len(entries) > 80
    for name, texts in entries:
        english, chinese = re.findall(r'"((?:[^"\\]|\\.)*)"', texts)
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", chinese)), name
        assert not re.search(r"[\u4e00-\u9fff]", english), name
    users = "".join(path.read_text(encoding="utf-8") for path in folder.iterdir()).replace(labels, "")
    assert not [name for name, _ in entries if not re.search(rf'"{name}"|LABELS\.{name}\b', users)]


def test_every_operation_has_words_in_two_languages():
    for known in described():
        for words in (known.english, known.chinese):
            assert all(words), known.name
        assert not re.search(r"[\u4e00-\u9fff]", "".join(known.english)), known.name
        assert re.search(r"[\u4e00-\u9fff]", "".join(known.chinese)), known.name


@pytest.fixture(scope="module")
def signs():
    """A ResNet-50 for SIGNS with weights as they start, and a picture: a real one where there is one."""
    folder = Path(os.environ.get("MINIRES_DATA", "/nowhere")) / "signs" / "64x64_SIGNS" / "test_signs"
    files = sorted(folder.glob("*.jpg"))
    image = data.decode(files[30]) if files else data.load("hands", size=64).test.images[0]
    model = models.build("resnet50_signs", seed=0)
    named = {"name": "resnet50_signs", "classes": list("012345"), "picture": image}
    return trace_html(model, normal(image), 3, **named), image


def test_resnet50_of_signs(browser, tmp_path, signs):
    content, image = signs
    assert len(content) <= 15_000_000
    opened = Opened(browser, content, tmp_path)
    shown = opened.page.evaluate(
        "() => [...document.getElementById('thumbnail').getContext('2d').getImageData(0, 0, 64, 64).data]"
    )
    np.testing.assert_array_equal(np.array(shown).reshape(64, 64, 4)[..., :3], image)
    opened.page.locator("#map [data-key='stage 2']").click()
    opened.page.locator("#map [aria-label^='res3b, closed']").click()
    opened.page.locator("#map [aria-label='Go to res3b_branch2b · conv2d']").click()
    opened.until("#path", "res3b_branch2b")
    opened.page.locator('[data-panel="y"] .large canvas').hover()
    assert float(opened.text("[data-result=total]")) == pytest.approx(
        float(opened.text("[data-result=recorded]")), rel=1e-3, abs=1e-5
    )
    screenshot(opened.page, "trace_desktop", tmp_path)
    opened.close()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("phone", {"viewport": {"width": 375, "height": 800}, "has_touch": True}),
        ("dark", {"color_scheme": "dark"}),
        ("phone_dark_zh", {"viewport": {"width": 375, "height": 800}, "color_scheme": "dark"}),
    ],
)
def test_on_a_phone_and_in_the_dark(browser, tmp_path, signs, name, options):
    opened = Opened(browser, signs[0], tmp_path, **options)
    page = opened.page
    if "zh" in name:
        page.locator("#language").click()
    page.locator("#backward").click()
    page.wait_for_selector("main h2.backward")
    page.keyboard.press("/")
    page.keyboard.type("bn3b_branch2c relu")
    page.keyboard.press("Enter")
    page.wait_for_selector(".fork")
    page.locator('[data-panel="dy"] .large canvas').hover()
    # Nothing is wider than the window: a page that scrolls sideways cannot be read on a phone.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(17, 22, 28)") == ("dark" in name)
    if "phone" in name:
        page.evaluate("document.getElementById('step').scrollIntoView()")
    screenshot(page, f"trace_{name}", tmp_path)
    opened.close()
