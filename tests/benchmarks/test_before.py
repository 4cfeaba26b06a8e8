"""before.py: a checkout agrees with itself; one that computes something else is not timed."""

import shutil

import before
import pytest
from compare import Job

JOB = Job("resnet20_cifar", batch=4, size=16, threads=1)


def test_a_checkout_against_itself():
    report = before.measure(JOB, before.HERE, rounds=2)
    assert report["agreement"]["training"] == report["agreement"]["gradient"] == 0
    assert 0.2 < report["now_over_before"] < 5
    medians = [report["results"][name]["median_ms"] for name in ("now", "before")]
    assert report["now_over_before"] == round(medians[0] / medians[1], 3)


def test_a_checkout_that_computes_something_else_is_noticed(tmp_path):
    for name in ("minires", "benchmarks"):  # with what the test above compiled
        shutil.copytree(before.HERE / name, tmp_path / name, ignore=shutil.ignore_patterns("results"))
    loss = tmp_path / "minires/ops/cross_entropy.py"
    old = loss.read_text()
    new = old.replace("return record(", "return 1.01 * record(", 1)
    assert new != old
    loss.write_text(new)
    with pytest.raises(SystemExit, match="the other checkout do not agree, so nothing is timed: gradient"):
        before.measure(JOB, tmp_path, rounds=1)
