"""The picture of an architecture: what stands in it, counted against the model, and where it stands."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import ImageFont

from minires import MiniresError, ShapeError, Tensor, models, nn
from minires.inspect.drawing import plot, plot_tape
from minires.models.densenet import DenseBlock
from minires.nn.blocks import ResidualBlock
from minires.tape import reachable

RNG = np.random.default_rng(0)
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
Box = tuple[float, float, float, float]
SHOWN = [
    "resnet50", "resnet152", "resnet50_signs", "preresnet50", "densenet121", "se_resnext50_32x4d",
    "bn_inception", "se_bn_inception", "plain18", "vgg11_lrn", "resnet1202_cifar",
]  # fmt: skip


class Picture:
    """An SVG file, read back."""

    def __init__(self, file: Path) -> None:
        self.bytes = file.read_bytes()
        self.root = ElementTree.fromstring(self.bytes)
        self.width, self.height = float(self.root.attrib["width"]), float(self.root.attrib["height"])
        assert self.root.attrib["viewBox"] == f"0 0 {self.width:.0f} {self.height:.0f}"

    def all(self, tag: str) -> list[ElementTree.Element]:
        return self.root.findall(f"{{http://www.w3.org/2000/svg}}{tag}")

    def rects(self, style: str) -> list[Box]:
        """The boxes of one class as left, top, right, bottom."""
        return [_rect(one) for one in self.all("rect") if style in one.get("class", "").split()]

    def texts(self, style: str | None = None) -> list[str]:
        return ["".join(t.itertext()) for t in self.all("text") if style is None or t.get("class") == style]

    def inside(self, box: Box) -> list[str]:
        """The texts that stand in a box."""
        return [
            "".join(text.itertext()) for text in self.all("text")
            if box[0] < float(text.attrib["x"]) < box[2] and box[1] < float(text.attrib["y"]) < box[3]
        ]  # fmt: skip

    def names(self) -> list[str]:
        """What stands on the skip paths, each as one line."""
        return [", ".join(self.inside(box)) for box in self.rects("label")]

    def counts(self) -> list[int]:
        """How many blocks each frame stands for."""
        found = []
        for frame in self.rects("block"):
            badges = [
                text for text in self.inside((*frame[:3], frame[1] + 35)) if re.fullmatch(r"x\d+", text)
            ]
            found.append(int(badges[0][1:]) if badges else 1)
        return found


def _rect(one: ElementTree.Element) -> Box:
    x, y, width, height = (float(one.get(key, "0")) for key in ("x", "y", "width", "height"))
    return x, y, x + width, y + height


@functools.cache
def _font(bold: bool, size: int) -> ImageFont.FreeTypeFont:
    """The widest of the fonts that the picture names."""
    return ImageFont.truetype(FONTS / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size)


def _extent(text: ElementTree.Element) -> Box:
    """Where a text stands, measured in its font."""
    size = 22 if text.get("class") == "title" else 13
    parts = [(text.get("class"), text.text or ""), *((part.get("class"), part.text or "") for part in text)]
    bold = ("title", "strong", "sign", "count")
    width = sum(_font(style in bold, size).getlength(words) for style, words in parts)
    x, y = float(text.attrib["x"]), float(text.attrib["y"])
    x -= width * {"start": 0, "middle": 0.5, "end": 1}[text.attrib["text-anchor"]]
    return x, y - 0.75 * size, x + width, y + 0.2 * size


def _path_points(path: ElementTree.Element) -> list[tuple[float, float]]:
    points, (x, y) = [], (0.0, 0.0)
    for command, numbers in re.findall(r"([MHVCQLZ])([-\d. ]*)", path.attrib["d"]):
        values = [float(number) for number in numbers.split()]
        if command in "HV":
            points += [(v, y) if command == "H" else (x, v) for v in values]
        else:
            points += zip(values[::2], values[1::2], strict=True)
        x, y = points[-1]
    return points


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _tidy(picture: Picture) -> int:
    """Check that everything stands on the page and nothing on something else. Returns the number of boxes."""
    page = (0.0, 0.0, picture.width, picture.height)
    texts = [(_extent(text), "".join(text.itertext())) for text in picture.all("text")]
    boxes = [_rect(one) for one in picture.all("rect")]
    for left, top, right, bottom in [*boxes, *(extent for extent, _ in texts)]:
        assert page[0] <= left < right <= page[2] and page[1] <= top < bottom <= page[3]
    points = [point for path in picture.all("path") for point in _path_points(path)]
    assert len(points) > 20
    assert all(0 <= x <= picture.width and 0 <= y <= picture.height for x, y in points)
    for (a, words_a), (b, words_b) in itertools.combinations(texts, 2):
        assert not _overlap(a, b), (words_a, words_b)
    small = [box for style in ("step", "plain", "gate", "label", "join") for box in picture.rects(style)]
    for a, b in itertools.combinations(small, 2):
        assert not _overlap(a, b)
    for extent, words in texts:  # a text is in a box as a whole or not at all
        for box in small:
            inside = (
                box[0] <= extent[0] and extent[2] <= box[2] and box[1] <= extent[1] and extent[3] <= box[3]
            )
            assert inside or not _overlap(extent, box), words
    return len(small)


class Drawn(Picture):
    """The picture of a model."""

    def __init__(self, model: nn.Module, size: int, folder: Path, name: str | None = None) -> None:
        self.model = model
        plot(model, (size, size, 3), folder / "model.svg", name=name)
        super().__init__(folder / "model.svg")


Draw = Callable[..., Drawn]


@pytest.fixture(scope="module")
def draw(tmp_path_factory: pytest.TempPathFactory) -> Draw:
    """Draws a model of the registry; each once."""

    @functools.cache
    def drawn(name: str, **options: Any) -> Drawn:
        model = models.build(name, seed=0, **options)
        return Drawn(model, models.entry(name).size, tmp_path_factory.mktemp("plot"), name)

    return drawn


# ------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("name", SHOWN)
def test_all_stands_on_the_page_and_nothing_on_something_else(name: str, draw: Draw) -> None:
    assert _tidy(draw(name)) > 8


def test_the_file_needs_nothing_else(draw: Draw) -> None:
    picture = draw("se_resnext50_32x4d")
    assert {one.tag.rpartition("}")[2] for one in picture.root.iter()} == {
        "svg", "title", "style", "rect", "text", "tspan", "path"
    }  # fmt: skip
    for word in (b"href", b"url(", b"@import", b"<script", b"src="):
        assert word not in picture.bytes


def test_one_model_gives_one_file(draw: Draw, tmp_path: Path) -> None:
    again = Drawn(models.build("densenet121", seed=7), 224, tmp_path, "densenet121")
    assert again.bytes == draw("densenet121").bytes


def test_resnet152_is_no_wider_than_a_screen(draw: Draw) -> None:
    assert 400 < draw("resnet152").width < 2000
    assert draw("resnet152").height < 4000  # 50 blocks, of which eight are drawn


def test_the_old_file_stays_where_a_picture_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "model.svg").write_text("before")
    with pytest.raises(ShapeError):
        plot(models.build("bn_inception"), (36, 36, 3), tmp_path / "model.svg")
    assert (tmp_path / "model.svg").read_text() == "before"
    assert list(tmp_path.iterdir()) == [tmp_path / "model.svg"]
    with pytest.raises(MiniresError, match="missing"):
        plot(models.build("resnet20_cifar"), (32, 32, 3), tmp_path / "missing" / "model.svg")


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = models.build("resnet20_cifar").train()
    frozen = next(module for _, module in model.named_modules() if isinstance(module, nn.BatchNorm2d))
    frozen.eval()
    for parameter in itertools.islice(model.parameters(), 3):
        parameter.requires_grad = False
    before = model.state_dict()
    picture = Drawn(model, 32, tmp_path, "x")
    assert model.training and not frozen.training and picture.counts() == [3, 1, 2, 1, 2]
    after = model.state_dict()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_names_are_escaped(tmp_path: Path) -> None:
    block = nn.Sequential(conv=nn.Conv2d(3, 4, 3, padding=1, rng=RNG), relu=nn.ReLU())
    model = nn.Sequential(**{"a<b>&\"'": block, "pool": nn.GlobalAvgPool2d()})
    picture = Drawn(model, 8, tmp_path, "</svg> & <script>\x00\ud800")
    assert picture.texts("title") == ["</svg> & <script>??"]
    assert "a<b>&\"'" in picture.texts("strong")
    assert not picture.root.findall(".//{*}script")
    plot(model, (8, 8, 3), tmp_path / "model.svg")
    assert ">Sequential</text>" in (tmp_path / "model.svg").read_text()


# ------------------------------------------------------------------------------------- what stands in it


def test_the_stages_of_resnet50_have_the_shapes_and_blocks_of_the_paper(draw: Draw) -> None:
    texts = draw("resnet50").texts()
    heads = [text for text in texts if re.fullmatch(r"\d+x\d+(, \d+ blocks?)?|scores", text)]
    assert heads == [
        "112x112", "56x56, 3 blocks", "28x28, 4 blocks", "14x14, 6 blocks", "7x7, 3 blocks", "scores"
    ]  # fmt: skip
    shapes = sorted(_shapes(draw("resnet50")))
    assert [shape for _, shape in shapes] == [
        "224x224x3", "112x112x64", "56x56x64", "56x56x256", "56x56x256", "28x28x512", "28x28x512",
        "14x14x1024", "14x14x1024", "7x7x2048", "7x7x2048", "2048", "1000",
    ]  # fmt: skip


def _shapes(picture: Picture) -> list[tuple[float, str]]:
    """The shapes on the arrows, with how far down they stand."""
    texts = [(float(text.attrib["y"]), "".join(text.itertext())) for text in picture.all("text")]
    return [(y, words) for y, words in texts if re.fullmatch(r"\d+(x\d+x\d+)?", words)]


@pytest.mark.parametrize("name", SHOWN)
def test_the_parameters_of_the_stages_make_the_total(name: str, draw: Draw) -> None:
    picture = draw(name)
    total = sum(array.size for array in picture.model.state_dict().values())
    assert any(text.startswith(f"{total:,} parameters, ") for text in picture.texts("soft"))
    stages = [re.fullmatch(r"([\d,]+) parameters", text) for text in picture.texts("soft")]
    assert sum(int(found[1].replace(",", "")) for found in stages if found) == total


RESIDUAL = ["resnet18", "resnet50", "resnet152", "resnet50_signs", "se_resnext50_32x4d", "resnet20_cifar"]


@pytest.mark.parametrize("name", RESIDUAL)
def test_each_residual_block_is_drawn_or_counted_and_has_one_addition(name: str, draw: Draw) -> None:
    picture = draw(name)
    blocks = [module for _, module in picture.model.named_modules() if isinstance(module, ResidualBlock)]
    assert sum(picture.counts()) == len(blocks)
    assert len(picture.rects("plus")) == len(picture.rects("block")) == len(picture.rects("label"))
    for plus in picture.rects("plus"):
        assert picture.inside(plus) == ["+"]
        assert sum(plus[1] > frame[1] and plus[3] < frame[3] for frame in picture.rects("block")) == 1


@pytest.mark.parametrize("name", RESIDUAL)
def test_a_projection_is_named_where_the_model_has_one(name: str, draw: Draw) -> None:
    picture = draw(name)
    blocks = [module for _, module in picture.model.named_modules() if isinstance(module, ResidualBlock)]
    wanted = []
    for block in blocks:
        stride = f", /{block.stride}" if block.stride > 1 else ""
        conv = [layer for path, layer in block.named_modules() if re.fullmatch(r"res\w+_branch1", path)]
        if conv:
            wanted.append(f"1x1, {block.out_channels}{stride}, BN")
        elif block.in_channels != block.out_channels:
            wanted.append(f"zeros to {block.out_channels}{stride}")
        else:
            wanted.append("identity")
    drawn = [
        words for words, count in zip(picture.names(), picture.counts(), strict=True) for _ in range(count)
    ]
    assert drawn == wanted and len(set(wanted)) > 1


def test_a_plain_network_has_no_skip_paths_and_no_additions(draw: Draw) -> None:
    picture = draw("plain18")
    assert not picture.rects("label") and not picture.rects("plus")
    assert sum(picture.counts()) == 8


def test_steps_say_what_a_block_does(draw: Draw) -> None:
    picture = draw("resnet50")
    third = picture.rects("block")[2]
    assert picture.inside(third) == [
        "res3a", "1x1, 128, /2, BN, ReLU", "3x3, 128, BN, ReLU", "1x1, 512, BN", "1x1, 512, /2", "BN", "+",
        "ReLU",
    ]  # fmt: skip
    before = draw("preresnet50")
    assert before.inside(before.rects("block")[1]) == [
        "res2b to res2c", "BN, ReLU, 1x1, 64", "BN, ReLU, 3x3, 64", "BN, ReLU, 1x1, 256", "identity", "+",
        "x2",
    ]  # fmt: skip


def test_a_dense_layer_is_concatenated_to_what_came_before(draw: Draw) -> None:
    picture = draw("densenet121")
    layers = [
        layer for _, block in picture.model.named_modules() if isinstance(block, DenseBlock)
        for layer in block.children()
    ]  # fmt: skip
    assert picture.counts() == [6, 1, 12, 1, 24, 1, 16] and 6 + 12 + 24 + 16 == len(layers)
    assert picture.names() == ["identity"] * 4 and picture.texts("sign") == ["concat"] * 4
    assert "block4.layer1 to layer16" in picture.texts() and "7x7, 16 blocks" in picture.texts()
    copies = draw("densenet121", shared=False)  # the same, by the operation concat
    assert copies.bytes == picture.bytes


def test_a_gate_stands_beside_the_branch(draw: Draw) -> None:
    picture = draw("se_resnext50_32x4d")
    assert len(picture.rects("gate")) == len(picture.rects("times")) == len(picture.rects("block"))
    assert picture.inside(picture.rects("gate")[0]) == [
        "global average pool", "dense 16, ReLU", "dense 256, sigmoid"
    ]  # fmt: skip
    assert any(", 32 groups" in text for text in picture.texts())
    on_the_path = draw("se_resnet50", placement="identity")
    assert on_the_path.names()[1].startswith("× gate, global average pool, dense 16, ReLU")
    assert not on_the_path.rects("gate")


def test_branches_side_by_side(draw: Draw) -> None:
    inception = draw("bn_inception")
    assert sum(inception.counts()) == len(inception.texts("sign")) == 10
    assert set(inception.texts("sign")) == {"concat"}
    for form, sign in (("branches", "+"), ("concat", "concat")):
        picture = draw("resnext50_4x24d", form=form)
        assert picture.texts("count").count("x4") == len(picture.rects("block")) == 8
        assert picture.texts("sign").count(sign) == (16 if sign == "+" else 8)


class Flat(nn.Module):
    """Forks without blocks: an addition that is made or not, and branches that meet on their way."""

    def __init__(self, *, skip: bool = True, tangled: bool = False) -> None:
        super().__init__()
        self.skip, self.tangled = skip, tangled
        self.first = nn.Conv2d(3, 8, 3, padding=1, rng=RNG)
        self.second = nn.Conv2d(8, 8, 3, padding=1, rng=RNG)
        self.pool = nn.GlobalAvgPool2d()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(x)
        if self.tangled:
            z = y * x
            return self.pool((y + z) * (z + x))
        return self.pool(x + y if self.skip else y)


def test_what_is_drawn_is_what_is_done(tmp_path: Path) -> None:
    with_skip, without = (Drawn(Flat(skip=skip), 8, tmp_path) for skip in (True, False))
    assert with_skip.names() == ["identity"] and len(with_skip.rects("plus")) == 1
    assert without.names() == [] and not without.rects("plus")
    assert len(with_skip.rects("step")) == len(without.rects("step")) == 2
    tangled = Drawn(Flat(tangled=True), 8, tmp_path)
    assert "5 operations" in tangled.texts() and len(tangled.rects("step")) == 1


def test_a_result_that_does_not_come_from_the_picture_has_no_plot(tmp_path: Path) -> None:
    class Constant(Flat):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            return self.second.weight * 2.0

    with pytest.raises(MiniresError, match="nothing leads from the picture"):
        plot(Constant(), (8, 8, 3), tmp_path / "model.svg")
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------- the tape


def test_the_tape_has_a_box_per_operation_and_an_arrow_per_use(tmp_path: Path) -> None:
    model = models.build("resnet20_cifar")
    loss = model(Tensor(np.zeros((2, 32, 32, 3), np.float32))).sum()
    plot_tape(loss, tmp_path / "tape.svg")
    picture = Picture(tmp_path / "tape.svg")
    assert loss.node is not None
    nodes = sorted((n for n in reachable(loss.node) if n.op != "leaf"), key=lambda n: n.number)
    rects = sorted(picture.rects("plain") + picture.rects("step"), key=lambda box: box[1])
    boxes = [", ".join(picture.inside(box)) for box in rects]
    assert boxes == [
        f"{n.op}, {n.path or 'no module'}, {'x'.join(map(str, n.shape)) or 'scalar'}" for n in nodes
    ]
    uses = [(parent, node) for node in nodes for parent in node.parents if parent in nodes]
    far = [nodes.index(node) - nodes.index(parent) > 1 for parent, node in uses]
    styles = [path.get("class") for path in picture.all("path")]
    assert styles.count("skip") == styles.count("skiphead") == sum(far) > 8
    leafed = [text for text in picture.texts("soft") if text.startswith("leaf ")]
    assert styles.count("head") == len(far) - sum(far) + len(leafed) and "leaf 64x10, 10" in leafed
    assert _tidy(picture) == len(nodes)
    around = [_path_points(path) for path in picture.all("path") if path.get("class") == "skip"]
    lanes = [(min(x for x, _ in points), points[0][1], points[-1][1]) for points in around]
    for (x, top, bottom), (other, start, end) in itertools.combinations(lanes, 2):
        assert x != other or bottom < start or end < top


def test_there_is_no_picture_without_a_tape(tmp_path: Path) -> None:
    with pytest.raises(MiniresError, match="no tape to draw"):
        plot_tape(Tensor([1.0]), tmp_path / "tape.svg")
    loss = (Tensor([1.0], requires_grad=True) * 2.0).sum()
    loss.backward()
    with pytest.raises(MiniresError, match="freed"):
        plot_tape(loss, tmp_path / "tape.svg")
    with pytest.raises(MiniresError, match="a leaf"):
        plot_tape(Tensor([1.0], requires_grad=True), tmp_path / "tape.svg")
    assert not list(tmp_path.iterdir())
