"""Which file of the package imports which, and a picture of it: floors, and arrows that point down.

The test of the architecture reads the same graph; the site draws the picture when it is made.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import minires

ROOT = Path(minires.__file__).parent
# A module may import what stands before it in this list, and modules of its own floor.
FLOORS = [
    "version", "beginnings", "quiet_start", "interrupt", "errors", "registry", "settings", "files",
    "download", "limits", "hdf5", "exercises", "backend", "distributed", "array_making", "modes", "tape",
    "tensor", "gradient_check", "ops", "nn", "plan", "models", "data", "optim", "train", "weights", "inspect",
    "debug", "lab", "local_page", "watch", "play", "doctor", "commands", "cli", "__main__",
]  # fmt: skip


def module_name(path: Path) -> str:
    """``minires/ops/relu.py`` -> ``minires.ops.relu``."""
    parts = ("minires", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
INSIDE = [module for module in FILES if module != "minires"]


def floor(module: str) -> str:
    """``minires.ops.relu`` -> ``ops``."""
    return module.split(".")[1]


def imports(module: str) -> Iterator[str]:
    """Everything that ``module`` imports, inside functions too, and by importlib.import_module."""
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} line {node.lineno}: imports are written in full"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else str(node.module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value)


def code_lines(path: Path) -> int:
    """How many lines hold code: no blank ones, no comments, no docstrings."""
    text = path.read_text(encoding="utf-8")
    lines = {number for number, line in enumerate(text.splitlines(), 1) if line.strip(" )]}")}
    lines -= {number for number, line in enumerate(text.splitlines(), 1) if line.lstrip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def arrows() -> Counter[tuple[str, str]]:
    """How many files of one floor import from another: {("nn", "ops"): 9, ...}."""
    return Counter(
        (floor(module), below)
        for module in INSIDE
        for below in {floor(name) for name in imports(module) if name.startswith("minires.")}
        if below != floor(module)
    )


def draw(path: Path) -> None:
    """Draw the floors with their sizes, and an arc from each to every floor that it imports from."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Arc, Polygon

    shown = [name for name in FLOORS if name != "__main__"]
    row = {name: number for number, name in enumerate(shown)}
    files = Counter(floor(module) for module in INSIDE)
    lines = Counter[str]()
    for module in INSIDE:
        lines[floor(module)] += code_lines(FILES[module])
    colours = [matplotlib.colormaps["viridis"](0.9 * number / len(shown)) for number in range(len(shown))]

    right = 0.3 + 0.85 * (len(shown) - 1) / 2  # how far the widest arc goes
    figure = Figure(figsize=(8.2, 8.2 * len(shown) / (9.2 + right)), layout="constrained")
    axes = figure.subplots()
    for name, at in row.items():
        width = 2.6 * lines[name] / max(lines.values())
        axes.barh(at, -width, height=0.62, color=colours[at])
        axes.text(-2.75, at, name, ha="right", va="center", fontsize=10.5, weight="bold")
        count = f"{lines[name]:,} lines in {files[name]} file{'s' * (files[name] > 1)}"
        axes.text(-5.9, at, count, ha="right", va="center", fontsize=8, color="0.4")
    for (above, below), count in sorted(arrows().items(), key=lambda item: row.get(item[0][0], 0)):
        if above in row and below in row:
            high, low = row[above], row[below]
            middle, height = (high + low) / 2, high - low
            axes.add_patch(
                Arc((0.1, middle), 0.85 * height, height, theta1=-90, theta2=90, color=colours[high],
                    linewidth=0.5 + 0.35 * min(count, 12), alpha=0.75)
            )  # fmt: skip
            axes.add_patch(Polygon([(0.1, low), (0.3, low + 0.13), (0.3, low - 0.13)], color="0.35"))
    axes.set(xlim=(-9.2, right), ylim=(-0.7, len(shown) - 0.3), aspect="equal")
    axes.axis("off")
    figure.savefig(path, dpi=110)
