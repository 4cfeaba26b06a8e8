"""before.py: a checkout agrees with itself; one that computes something else is not timed."""

import shutil
from pathlib import Path

import before
import pytest
from compare import Job

import minires

JOB = Job("resnet20_cifar", batch=4, size=16, threads=1)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of what is tested, with its compiled kernels, that ``before`` takes for its own checkout."""
    shutil.copytree(Path(minires.__file__).parent, tmp_path / "now/minires")
    left_out = shutil.ignore_patterns("results")
    shutil.copytree(before.HERE / "benchmarks", tmp_path / "now/benchmarks", ignore=left_out)
    monkeypatch.setattr(before, "HERE", tmp_path / "now")
    return tmp_path / "now"


def test_a_checkout_against_itself(checkout):
    report = before.measure(JOB, checkout, rounds=2)
    assert report["agreement"]["training"] == report["agreement"]["gradient"] == 0
    assert 0.2 < report["now_over_before"] < 5
    medians = [report["results"][name]["median_ms"] for name in ("now", "before")]
    assert report["now_over_before"] == round(medians[0] / medians[1], 3)


def test_a_checkout_that_computes_something_else_is_noticed(checkout, tmp_path):
    other = shutil.copytree(checkout, tmp_path / "other")
    loss = other / "minires/ops/cross_entropy.py"
    old = loss.read_text()
    new = old.replace("return record(", "return 1.01 * record(", 1)
    assert new != old
    loss.write_text(new)
    with pytest.raises(SystemExit, match="the other checkout do not agree, so nothing is timed: gradient"):
        before.measure(JOB, other, rounds=1)
