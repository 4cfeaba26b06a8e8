"""compare.py: what it times is the same in every library, and a difference stops it."""

import json
import shutil
import sys
from types import SimpleNamespace

import machine
import numpy as np
import peers as engines
import pytest
import readme
from peers import COMPILED, FOLDED, ONNX, TRAIN_PLANNED
from workloads import WORKLOADS, Job, prepare

from minires import backend
from minires.nn import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, Sequential

torch = pytest.importorskip("torch")
compare = pytest.importorskip("compare")

JOB = Job("resnet20_cifar", batch=4, size=16, threads=1)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")


class SmallJob(Job):
    """A network that is compiled in seconds."""

    def build(self, **_):
        return Sequential(
            conv=Conv2d(3, 8, 3, padding=1), bn=BatchNorm2d(8, relu=True), flat=Flatten(), drop=Dropout(0.5),
            fc=Linear(8 * self.size**2, 10),
        )  # fmt: skip


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """What each peer does when asked, here in one process."""
    before = backend.threads(), torch.get_num_threads()

    def made(job, names):
        folder = tmp_path_factory.mktemp("compare")
        prepare(folder, job)
        inputs = np.load(folder / "inputs.npz")
        run = (job, inputs["x"], inputs["labels"], np.load(folder / "weights.npz"))
        return {name: engines.ENGINES[name](*run) for name in names}

    yield made
    backend.set_threads(before[0])
    torch.set_num_threads(before[1])


@pytest.fixture(scope="module")
def usual(peers):
    pytest.importorskip("onnxruntime")
    return peers(JOB, [name for name in compare.PEERS if name != COMPILED])


def test_running_statistics_do_not_hide_a_wrong_folding(tmp_path):
    prepare(tmp_path, JOB)
    weights = np.load(tmp_path / "weights.npz")
    assert 0.05 < weights["bn_conv1.running_mean"].std() < 0.2
    assert 0.1 < weights["bn_conv1.running_var"].std() < 0.5


def test_all_peers_compute_the_same(usual):
    found = {name: peer["check"]() for name, peer in usual.items()}
    for name in ("minires", "torch channels-last"):
        apart = compare.difference(found[name], found["torch"])
        for what in ("training", "inference", FOLDED):
            assert apart[what] < 1e-5, (name, what, apart[what])
        assert apart["gradient"] < 1e-2, (name, apart)
        compare.verify(apart)
    assert found[ONNX].keys() == {"inference"}
    assert compare.difference(found[ONNX], found["torch"], ["inference"])["inference"] < 1e-5
    logits = found["minires"]
    assert not np.allclose(
        logits["training"], logits["inference"], rtol=0.1
    )  # the statistics are not the same


def test_every_action_takes_its_time(usual):
    for name, peer in usual.items():
        assert peer["inference"]() > 0
        assert (name == ONNX) == ("train" not in peer) == (FOLDED not in peer)
        if name != ONNX:
            assert [seconds > 0 for seconds in peer["train"]()] == [True] * 3 and peer[FOLDED]() > 0


@needs_compiler
def test_what_is_compiled_computes_the_same(peers, monkeypatch, tmp_path):
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(config, "compile_threads", 1)  # in this process
    made = peers(SmallJob("resnet20_cifar", batch=2, size=8, threads=1), ["torch", COMPILED])
    found = {name: peer["check"]() for name, peer in made.items()}
    apart = compare.difference(found[COMPILED], found["torch"])
    assert max(apart[what] for what in ("training", "inference", FOLDED, "gradient")) < 1e-5
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    assert before >= 4  # two ways of inference, and the loss with dropout and without
    seconds = [made[COMPILED][what]() for what in ("train", "inference", FOLDED)]
    assert np.shape(seconds[0]) == (3,) and min(seconds[1:]) > 0
    assert counters["unique_graphs"] == before, "something is compiled while it is timed"


def arrays(**changes):
    logits = dict.fromkeys(("training", "inference", FOLDED), np.ones(4))
    gradients = {"d a": np.full(9, 2.0), "d b": np.ones(4), "d zero": np.full(2, 1e-7)}
    return {**logits, **gradients, **changes}


def test_differences_are_relative_and_leave_out_what_is_zero():
    found = compare.difference(arrays(**{"d b": np.full(4, 1.5), "d zero": np.full(2, -1e-7)}), arrays())
    assert found["training"] == found["inference"] == 0
    assert found["worst"] == pytest.approx(0.5) and found["of"] == "b"
    assert found["median"] == pytest.approx(0.25)
    assert found["gradient"] == pytest.approx(1 / np.sqrt(36 + 4), rel=1e-6)


def test_who_cannot_train_is_held_to_its_inference():
    theirs = {"inference": np.full(4, 1.5), FOLDED: np.ones(4)}
    assert compare.difference(theirs, arrays(), ["inference", FOLDED]) == {"inference": 0.5, FOLDED: 0.0}
    plain = arrays(inference=np.full(4, 2.0))
    del plain[FOLDED]
    assert compare.difference(theirs, plain, [FOLDED]) == {FOLDED: 0.5}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": np.full(4, 1.002)}, "training 2.0e-03"),
        ({"inference": np.full(4, np.nan)}, "inference nan"),
        ({FOLDED: np.full(4, 2.0)}, "inference, folded 1.0e.00"),
        ({"d a": np.full(9, 2.2)}, "gradient 9.5e-02"),
    ],
)
def test_nothing_is_timed_where_they_differ(changes, words):
    compare.verify(compare.difference(arrays(), arrays()))
    with pytest.raises(SystemExit, match=f"minires and torch do not agree.* {words}"):
        compare.verify(compare.difference(arrays(**changes), arrays()))


def row(train, inference, memory, planned=None):
    plan = {} if planned is None else {TRAIN_PLANNED: [[planned / 1e3, 0, 0]] * 3}
    seconds = {"train": [[train / 2e3, train / 4e3, train / 4e3]] * 3, "inference": [inference / 1e3] * 3,
               FOLDED: [inference / 2e3] * 3, **plan}  # fmt: skip
    return {**compare._row(seconds), "peak_memory_MiB": memory}


def test_the_best_pytorch_counts_and_eager_by_itself():
    assert row(60, 9, 50)["train"]["median_ms"] == 60 and row(60, 9, 50)["backward"]["median_ms"] == 15
    ours, theirs = row(60, 9, 50, planned=45), row(40, 20, 200)
    results = {"minires": ours, "torch": theirs, "torch channels-last": row(30, 30, 100)}
    eager = {"train": 2.0, "forward": 2.0, "backward": 2.0, "optimizer": 2.0, "inference": 0.45, FOLDED: 0.45,
             "best inference": 0.45, "best training": 1.5, "memory": 0.5}  # fmt: skip
    both = {"minires_over_pytorch_best": eager, "minires_over_pytorch_eager": eager}
    assert compare.ratios(results) == both
    results[ONNX] = compare._row({"inference": [3e-3] * 3})
    assert compare.ratios(results) == {**both, "minires_over_onnxruntime": 1.5}
    results[COMPILED] = row(120, 6, 400)
    found = compare.ratios(results)
    faster = {**eager, "inference": 1.5, FOLDED: 1.5, "best inference": 1.5}
    assert found["minires_over_pytorch_best"] == faster and found["minires_over_pytorch_eager"] == eager


def test_medians_and_quartiles():
    assert compare.summary([0.004, 0.001, 0.002, 0.003, 0.1]) == {
        "median_ms": 3.0, "quartiles_ms": [2.0, 4.0],
    }  # fmt: skip
    assert compare.summary([0.5]) == {"median_ms": 500.0, "quartiles_ms": [500.0, 500.0]}


@pytest.mark.parametrize(
    ("run", "count"), [(0.2, 1), (0.03, 4), (0.001, 10), ([0.2, 0.1, 0.1], 1), ([0.01, 0.01, 0.02], 3)]
)
def test_a_turn_of_short_runs_is_several_of_them(run, count, monkeypatch):
    monkeypatch.setattr(compare, "REST", 0.0)
    asked = []
    peer = SimpleNamespace(ask=lambda what: asked.append(what) or run)
    assert compare.turn(peer, "train") == [run] * count
    assert asked == ["train"] * (1 + count)  # the first is not counted


FAKE = """
import json, sys, time
print(json.dumps(["check"]), flush=True)
for line in sys.stdin:
    what = line.strip()
    if what == "sleep":
        time.sleep(60)
    if what == "end":
        sys.exit(3)
    print(json.dumps({"error": "ValueError: no such luck"} if what == "check" else what), flush=True)
"""


def test_what_a_peer_cannot_do_is_told(tmp_path):
    program = (sys.executable, "-c", FAKE)
    with compare.Peer("it", tmp_path, JOB, program) as peer:
        assert peer.can == ["check"] and peer.ask("echo") == "echo"
        with pytest.raises(compare.PeerFailed, match="^it: ValueError: no such luck$"):
            peer.ask("check")
        with pytest.raises(compare.PeerFailed, match="it gave no answer in 0 s"):
            peer.ask("sleep", limit=0.2)
    with (
        compare.Peer("it", tmp_path, JOB, program) as peer,
        pytest.raises(compare.PeerFailed, match="it ended with status 3"),
    ):
        peer.ask("end")


def test_the_report_says_who_is_left_out_and_why(monkeypatch, tmp_path, capfd):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing that was compiled before
    monkeypatch.setattr(compare, "WARM_UP", 1)
    report = compare.measure(JOB, 1, compiled=True)
    assert report["what"] == "resnet20_cifar, batch 4, 16x16, float32, Adam, 1 thread, 1 rounds"
    assert report["left_out"].keys() == {COMPILED}
    assert "no-such-compiler" in report["left_out"][COMPILED]
    assert list(report["results"]) == ["minires", "torch", "torch channels-last", ONNX]
    assert report["results"][ONNX].keys() == {"inference"}
    assert report["agreement"]["onnxruntime against torch"]["inference"] < 1e-5
    assert all(report["results"][name]["peak_memory_MiB"] > 50 for name in compare.REQUIRED)
    capfd.readouterr()
    compare.show(report)
    shown = capfd.readouterr().out
    assert "left out: torch compiled: InductorError: InvalidCxxCompiler" in shown
    assert "best inference, minires / onnxruntime" in shown


def test_every_workload_has_a_result_of_its_own_and_the_readme_reads_them():
    names = [job.name for job in WORKLOADS]
    assert len(set(names)) == len(names)
    assert names[:2] == [readme.DETAILED, "resnet50_signs_b32_1thread"]
    reports = readme._workloads(readme.PROCESSOR)
    assert Job(**reports[0]["job"]).name == readme.DETAILED
    assert {machine.short_name(one["machine"]["processor"]) for one in reports} == {readme.PROCESSOR}


@pytest.mark.parametrize(
    ("processor", "name"),
    [
        ("AMD EPYC (family 25, model 17, AVX-512)", "amd_25_17"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU (family 6, model 143, AVX-512)", "intel_6_143"),
        ("unknown (family None, model None, no AVX2)", "other"),
    ],
)
def test_results_lie_with_their_processor(processor, name, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "SPEED", tmp_path)
    report = {"machine": {"processor": processor}, "job": {"model": "resnet50", "batch": 2, "size": 64},
              "minires_over_pytorch_best": {"train": 1.5}}  # fmt: skip
    compare.save(report, again=True)
    file = tmp_path / name / "resnet50_b2.json"
    assert json.loads(file.read_text()) == report
    compare.save(dict(report), again=True)
    kept = {key: value for key, value in report.items() if key != "job"}
    assert json.loads(file.read_text())["run before"] == kept


def test_each_processor_has_its_table(tmp_path, monkeypatch):
    (detailed, *_) = readme._workloads(readme.PROCESSOR)
    for name, more in ((readme.PROCESSOR, {}), ("intel_1_2", {"minires_over_onnxruntime": 7.77})):
        (tmp_path / name).mkdir()
        report = {**detailed, **more}
        report["machine"] = {**detailed["machine"], "processor": name}
        report.pop("run before", None)  # as of a new workload
        (tmp_path / name / f"{readme.DETAILED}.json").write_text(json.dumps(report))
    monkeypatch.setattr(readme, "SPEED", tmp_path)
    found = readme.speed()
    first, second = found.index(f"on {readme.PROCESSOR},"), found.index("on intel_1_2,")
    assert first < found.index("**7.77**") < second and found.count("\n| ms, median |") == 2
