"""Which tests are those of a file of the engine: tests/ has the package's tree; here is what else."""

from __future__ import annotations

import re
from pathlib import Path

from mutations import INPUTS, Mutant

ENGINE = (
    "tensor.py", "tape.py", "modes.py", "settings.py", "array_making.py", "gradient_check.py",
    "ops/**/*.py", "nn/**/*.py", "optim/**/*.py",
)  # fmt: skip

# The tests of files that have none of their own name, all in tests/.
TESTS = {
    "tensor.py": ("test_tensor.py", "test_unchanged.py"),
    "tape.py": ("test_tensor.py", "test_unchanged.py"),
    "modes.py": ("test_settings.py", "nn/test_layers.py"),
    "array_making.py": ("test_tensor.py",),
    "ops/__init__.py": (
        "ops/test_reshape.py",
        "ops/test_reduce.py",
        "ops/test_arithmetic.py",
        "test_tensor.py",
    ),
    "ops/checks.py": ("ops/test_checks.py",),
    "ops/callable_module.py": ("ops/test_cases.py", "ops/test_examples.py"),
    "ops/registry.py": ("ops/test_registry.py", "ops/test_cases.py"),
    "ops/cases.py": ("ops/test_cases.py",),
    "ops/elementwise.py": ("ops/test_arithmetic.py", "ops/test_piecewise.py"),
    "ops/labels.py": ("ops/test_cross_entropy.py", "ops/test_forms.py", "ops/test_call_texts.py"),
    "ops/nll_loss.py": ("ops/test_cross_entropy.py",),
    "ops/reshape.py": ("ops/test_reshape.py", "weights/test_onnx.py"),
    "ops/onnx_graph.py": ("weights/test_onnx.py", "weights/test_onnx_nodes.py"),
    "ops/plot_labels.py": ("ops/test_plot_labels.py",),
    "ops/to.py": ("test_tensor.py", "ops/test_mixed_precision.py"),
    "ops/window.py": ("ops/test_max_pool2d.py", "ops/test_avg_pool2d.py", "ops/test_conv2d.py"),
    "ops/forms": ("ops/test_forms.py", "debug/test_page_arithmetic.py", "debug/test_explain.py"),
    "ops/max_pool2d/cuda_kernels.py": ("ops/test_pooling_cuda.py",),
    "ops/avg_pool2d/cuda_kernels.py": ("ops/test_pooling_cuda.py",),
    "nn/blocks.py": ("nn/test_blocks.py", "nn/test_layers.py"),
    "nn/layers.py": ("nn/test_layers.py", "nn/test_containers.py", "nn/test_random.py"),
    "nn/init.py": ("nn/test_random.py", "nn/test_layers.py"),
    "nn/module.py": ("nn/test_module.py", "nn/test_own_models.py", "nn/test_repr.py"),
    "nn/of_operation.py": ("nn/test_layers.py", "nn/test_containers.py"),
    "nn/paths.py": ("nn/test_module.py", "nn/test_containers.py", "nn/test_own_models.py"),
    "nn/show.py": ("nn/test_repr.py",),
    "optim/adam.py": ("optim/test_optim.py", "optim/test_keras.py"),
    "optim/optimizer.py": ("optim/test_optim.py", "optim/test_what_fits.py", "optim/test_cuda_kernels.py"),
    "optim/cuda_kernels.py": ("optim/test_cuda_kernels.py",),
    "optim": ("optim/test_optim.py", "optim/test_what_fits.py"),
}
# Tests of several operations together, in tests/ops/, besides those of their own.
TOGETHER = {"test_scores_cuda.py": ("softmax", "cross_entropy", "dropout")}
# Functions that are tested for all operations in one place, by what is in their names; and with which -k, if
# the tests there have not the names of the operations.
ELSEWHERE = {
    "cuda": ("tests/backend/test_cuda.py", ""),
    "backend.fast": ("tests/ops/test_cases.py", "reference"),
    "size > 0": ("tests/ops/test_empty.py", ""),
    "onnx": ("tests/weights/test_onnx.py", "an_operation or by_number or refused"),
}


def engine(root: Path) -> list[Path]:
    """The files that are changed."""
    found = {path for pattern in ENGINE for path in (root / "minires").glob(pattern)}
    tables = {path for path in found if INPUTS.search(path.stem)} - {root / "minires/ops/cases.py"}
    return sorted(found - tables)


def tests_of(mutant: Mutant, root: Path) -> list[str]:
    """What pytest is given: the tests of the file, and those of all operations narrowed to its own."""
    file = mutant.file.removeprefix("minires/")
    entry = next((e for e in (file, *map(str, Path(file).parents)) if e in TESTS), None)
    name = Path(file).stem if "/" not in file or file.count("/") == 1 else Path(file).parent.name
    about = f"{Path(file).stem} {mutant.function} {mutant.code}"
    ends = ("_cuda", "") if "cuda" in about else ("",)
    own = [root / "tests" / Path(file).parts[0] / f"test_{name}{end}.py" for end in ends]
    own += [root / "tests/ops" / test for test, names in TOGETHER.items() if name in names]
    if "/" not in file:
        own = [root / "tests" / f"test_{name}.py"]
    found = [str(path.relative_to(root)) for path in own if path.exists() and entry in (None, "optim")]
    found += [f"tests/{test}" for test in TESTS.get(entry or "", ()) if f"tests/{test}" not in found]
    also = [there for word, there in ELSEWHERE.items() if word in about]
    if also and file.startswith("ops/") and file not in TESTS:
        text = (root / "minires" / file).read_text(encoding="utf-8")
        ops = re.findall(r'record\(\s*"(\w+)"', text)
        ops = ops or re.findall(r"(?m)^def ([a-z]\w*)\(.*Tensor", text)
        words = [name, *(Path(test).stem for test in found)]
        for _, only in also:
            words += [only] if only else ops
        found = [*(test for test, _ in also), *found, "-k", " or ".join(dict.fromkeys(words))]
    return found
