"""compare.py: what it times is the same in both libraries, and a difference stops it."""

import numpy as np
import pytest
import readme

from minires import backend

torch = pytest.importorskip("torch")
compare = pytest.importorskip("compare")

JOB = compare.Job("resnet20_cifar", batch=4, size=16, threads=1)


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """What each peer does when asked, here in one process."""
    folder = tmp_path_factory.mktemp("compare")
    before = backend.threads(), torch.get_num_threads()
    compare.prepare(folder, JOB)
    inputs = np.load(folder / "inputs.npz")
    run = (JOB, inputs["x"], inputs["labels"], np.load(folder / "weights.npz"))
    yield {
        "minires": compare._minires(*run),
        "torch": compare._torch(*run, channels_last=False),
        "torch channels-last": compare._torch(*run, channels_last=True),
    }
    backend.set_threads(before[0])
    torch.set_num_threads(before[1])


def test_running_statistics_do_not_hide_a_wrong_folding(tmp_path):
    compare.prepare(tmp_path, JOB)
    weights = np.load(tmp_path / "weights.npz")
    assert 0.05 < weights["bn_conv1.running_mean"].std() < 0.2
    assert 0.1 < weights["bn_conv1.running_var"].std() < 0.5


def test_all_peers_compute_the_same(peers):
    found = {name: peer["check"]() for name, peer in peers.items()}
    for name in ("minires", "torch channels-last"):
        apart = compare.difference(found[name], found["torch"])
        for what in ("training", "inference", compare.FOLDED):
            assert apart[what] < 1e-5, (name, what, apart[what])
        assert apart["gradient"] < 1e-2, (name, apart)
        compare.verify(apart)
    logits = found["minires"]
    assert not np.allclose(
        logits["training"], logits["inference"], rtol=0.1
    )  # the statistics are not the same


def test_every_action_takes_its_time(peers):
    for peer in peers.values():
        assert [seconds > 0 for seconds in peer["train"]()] == [True] * 3
        assert peer["inference"]() > 0 and peer[compare.FOLDED]() > 0


def arrays(**changes):
    logits = dict.fromkeys(("training", "inference", compare.FOLDED), np.ones(4))
    gradients = {"d a": np.full(9, 2.0), "d b": np.ones(4), "d zero": np.full(2, 1e-7)}
    return {**logits, **gradients, **changes}


def test_differences_are_relative_and_leave_out_what_is_zero():
    found = compare.difference(arrays(**{"d b": np.full(4, 1.5), "d zero": np.full(2, -1e-7)}), arrays())
    assert found["training"] == found["inference"] == 0
    assert found["worst"] == pytest.approx(0.5) and found["of"] == "b"
    assert found["median"] == pytest.approx(0.25)
    assert found["gradient"] == pytest.approx(1 / np.sqrt(36 + 4), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": np.full(4, 1.002)}, "training 2.0e-03"),
        ({"inference": np.full(4, np.nan)}, "inference nan"),
        ({compare.FOLDED: np.full(4, 2.0)}, "inference, folded 1.0e.00"),
        ({"d a": np.full(9, 2.2)}, "gradient 9.5e-02"),
    ],
)
def test_nothing_is_timed_where_they_differ(changes, words):
    compare.verify(compare.difference(arrays(), arrays()))
    with pytest.raises(SystemExit, match=words):
        compare.verify(compare.difference(arrays(**changes), arrays()))


def test_the_better_of_pytorchs_layouts_counts():
    def row(train, inference, memory):
        seconds = {"train": [[train / 2e3, train / 4e3, train / 4e3]] * 3, "inference": [inference / 1e3] * 3,
                   compare.FOLDED: [inference / 2e3] * 3}  # fmt: skip
        return {**compare._row(seconds), "peak_memory_MiB": memory}

    assert row(60, 9, 50)["train"]["median_ms"] == 60 and row(60, 9, 50)["backward"]["median_ms"] == 15
    names = compare.PEERS
    ratios = compare._ratios(
        dict(zip(names, [row(60, 9, 50), row(40, 20, 200), row(30, 30, 100)], strict=True))
    )
    assert ratios == {"train": 2.0, "forward": 2.0, "backward": 2.0, "optimizer": 2.0, "inference": 0.45,
                      compare.FOLDED: 0.45, "memory": 0.5}  # fmt: skip


def test_medians_and_quartiles():
    assert compare.summary([0.004, 0.001, 0.002, 0.003, 0.1]) == {
        "median_ms": 3.0, "quartiles_ms": [2.0, 4.0],
    }  # fmt: skip
    assert compare.summary([0.5]) == {"median_ms": 500.0, "quartiles_ms": [500.0, 500.0]}


def test_every_workload_has_a_file_of_its_own_and_the_readme_reads_them():
    paths = [job.path for job in compare.WORKLOADS]
    assert len(set(paths)) == len(paths)
    assert paths[0].stem == readme.DETAILED and paths[0].exists()
    assert paths[1].stem == "speed_resnet50_signs_b32_pins"
    assert all(path.match("results/speed_*.json") for path in paths)
