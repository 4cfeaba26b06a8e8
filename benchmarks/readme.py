"""Write the tables of figures in README and in the pages of the site anew from the result files.

    python benchmarks/readme.py [--check]

With ``--check`` nothing is written; the exit status is 1 if a page is not what the results say.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import parallel_tables

from minires.lab import LABS, Outcome, recalled
from minires.lab.expect import VERDICTS

RESULTS = Path(__file__).parent / "results"
SPEED = RESULTS / "speed"  # of compare.py, a folder per processor
PROCESSOR = "intel_6_167"  # the one whose figures come first, and alone into the README
DETAILED = "resnet50_signs_b32"
ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "tutorials" / "guide").glob("*.md"))]
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def headline() -> str:
    """What a newcomer asks first: how well, how fast, how large, how right."""
    lines = ["| on two cores, without a GPU | |", "|---|---|"]
    for name in ("signs_default", "signs_two-epoch", "hands_default"):
        report = load(name)
        accuracy, minutes = percent(report["median_test_accuracy"]), report["median_seconds"] / 60
        lines.append(f"| test accuracy of `{report['what']}` | **{accuracy}** in {minutes:.1f} min |")
    few = [entry["median"] for entry in load("own_pictures")["sets"].values()]
    ahead = [100 * (of["minires"] - _best_of_pytorch(of)) for of in few]
    what = f"test accuracy of `minires train --data FOLDER` on {len(few)} sets of 72 or 250 pictures"
    least, most = (percent(of(one["minires"] for one in few)) for of in (min, max))
    lines.append(
        f"| {what}; minus that of the best of three ways of PyTorch | **{least}** to **{most}**; "
        f"**{min(ahead):+.1f}** to **{max(ahead):+.1f}** points |"
    )
    workloads = _workloads(PROCESSOR)
    report = workloads[0]
    ours, planned, theirs = _steps(report)
    ratio = _ratio(report["minires_over_pytorch_best"], BEST_TRAIN)
    machine = report["machine"]
    lines.append(f"| what follows was measured {machine['date']} on | {machine['processor']} |")
    what = f"training step of {_workload(report)}, minires (as a plan) : PyTorch"
    lines.append(f"| {what} | {min(ours, planned or ours):.0f} : {theirs:.0f} ms, {ratio} |")
    ways = ((BEST_TRAIN, "training step, the faster way,"), (BEST, "inference, the fastest way,"))
    for part, title in (*ways, ("memory", "peak memory")):
        found = [one["minires_over_pytorch_best"][part] for one in workloads]
        what = f"{title} of {len(found)} workloads, minires : PyTorch"
        lines.append(f"| {what} | **{min(found):.2f}** to **{max(found):.2f}** |")
    found = [one["minires_over_onnxruntime"] for one in workloads if "minires_over_onnxruntime" in one]
    if found:
        what = f"inference of {len(found)} workloads, minires : ONNX Runtime"
        lines.append(f"| {what} | **{min(found):.2f}** to **{max(found):.2f}** |")
    papers = load("family")["papers"].values()
    hold, rows = sum(row["hold"] for row in papers), sum(row["rows"] for row in papers)
    count = len(load("family")["models"])
    lines.append(f"| models of the papers; rows of their figures that hold | {count}; {hold} of {rows} |")
    verdicts = [one.verdict for one in lab_outcomes()]
    what = "claims of papers tried by `minires lab`; that agree, are too small to tell, differ"
    lines.append(f"| {what} | {len(verdicts)}; {_counts(verdicts)} |")
    return "\n".join(lines) + "\n"


def accuracy() -> str:
    """Every recipe that has a result, with all its seeds."""
    lines = [
        "| command | test accuracy, median | every seed | time of one run | measured |",
        "|---|---|---|---|---|",
    ]
    reports = [load(path.stem) for path in sorted(RESULTS.glob("*_*.json"))]
    for report in (one for one in reports if "median_test_accuracy" in one):
        seeds = ", ".join(percent(seed["test_accuracy"]) for seed in report["seeds"].values())
        minutes = report["median_seconds"] / 60
        row = (f"`{report['what']}`", f"**{percent(report['median_test_accuracy'])}**", seeds)
        lines.append(f"| {' | '.join(row)} | {minutes:.1f} min | {report['machine']['date']} |")
    return "\n".join(lines) + f"\n\nOn {_machine(report)}\n"


def speed() -> str:
    """A line per workload beside its peers, then the parts of the step for the first; for each processor."""
    others = sorted(folder.name for folder in SPEED.iterdir() if folder.name != PROCESSOR)
    tables = [_workloads(processor) for processor in (PROCESSOR, *others)]
    return "\n".join(f"**{table[0]['machine']['processor']}**\n\n{_beside_peers(table)}" for table in tables)


def _beside_peers(reports: list[dict[str, Any]]) -> str:
    """One processor's table, without the columns that say nothing in it."""
    rows = []
    for report in reports:
        best, eager = report["minires_over_pytorch_best"], report["minires_over_pytorch_eager"]
        before = report.get("run before", {}).get("minires_over_pytorch_eager", {})
        ours, planned, theirs = (_ms(time) if time else "" for time in _steps(report))
        alone = _ratio(eager, BEST_TRAIN).strip("*") if eager != best else ""
        rows.append({
            "training step": _workload(report), "minires": ours, "planned": planned, "PyTorch": theirs,
            "minires / PyTorch": _ratio(best, "train"),
            "planned / PyTorch": _ratio(best, BEST_TRAIN) if planned else "", "eager alone": alone,
            "run before": _ratio(before, BEST_TRAIN).strip("*"), "inference": _ratio(best, "inference"),
            "batch norms folded": _ratio(best, FOLDED), "the fastest way": _ratio(best, BEST),
            "minires / ONNX Runtime": _ratio(report, "minires_over_onnxruntime"),
            "peak memory": _ratio(best, "memory"),
        })  # fmt: skip
    head = [name for name in rows[0] if any(row[name] for row in rows)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(row[name] for name in head)} |" for row in rows]
    left = sorted({why for report in reports for why in report.get("left_out", {}).values()})
    told = "".join(re.sub(r"(--\w+)", r"`\1`", f"Left out: {why}.\n\n") for why in left)
    return "\n".join(lines) + f"\n\n{told}{_parts(reports[0])}"


def engines() -> str:
    """A training step beside two older engines on NumPy."""
    report = load("older_engines")
    lines = ["| training step | time | minires / it | planned / it |", "|---|---|---|---|"]
    for name, row in report["results"].items():
        ways = ("", "") if name.startswith("minires") else ("minires", "minires_planned")
        ratios = [way and f"**{report[f'{way}_over_{name}']['train']:.2f}**" for way in ways]
        lines.append(f"| {TITLES[name]} | {row['train']['median_ms']:.0f} ms | {' | '.join(ratios)} |")
    return "\n".join(lines) + f"\n\n{report['what']}. {_where(report)}\n"


def bf16() -> str:
    """The same training in float32 and with bfloat16 activations."""
    report = load("bf16_accuracy")
    lines = ["| `--precision` | test accuracy, median | every seed |", "|---|---|---|"]
    for name in ("fp32", "bf16"):
        row = report[name]
        seeds = ", ".join(percent(seed["test_accuracy"]) for seed in row["seeds"].values())
        lines.append(f"| {name} | **{percent(row['median_test_accuracy'])}** | {seeds} |")
    command = report["what"].removesuffix(" --precision ...")
    return "\n".join(lines) + f"\n\n`{command}`. {_where(report)}\n"


def first_run() -> str:
    """What the first run on a machine costs."""
    report = load("first_run")
    first, second, own = (report[f"{what}_seconds"] for what in ("first", "second", "import"))
    lines = [
        "| a short `minires train`, first run (it compiles, and says so) | second run | `import minires` |",
        "|---|---|---|",
        f"| {first:.1f} s | {second:.1f} s | {own:.2f} s |",
    ]
    return "\n".join(lines) + f"\n\n{_where(report)}\n"


TITLES = {"minires": "minires", "minires, planned": "minires, planned", "chainer": "Chainer 7.8.1",
          "dezero": "DeZero 0.0.13"}  # fmt: skip
FOLDED = "inference, folded"
PLANNED = "inference, planned"
TRAIN_PLANNED = "train, planned"
BEST, BEST_TRAIN = "best inference", "best training"


def _workloads(processor: str) -> list[dict[str, Any]]:
    """The results of compare.py on a processor, the one with the detailed table first."""

    def order(name: str) -> tuple[Any, ...]:
        return (name != DETAILED, *reports[name]["job"].values())

    reports = {path.stem: json.loads(path.read_text()) for path in (SPEED / processor).glob("*.json")}
    for report in reports.values():
        for name in ("minires_over_pytorch_best", "minires_over_pytorch_eager"):
            report[name].setdefault(BEST_TRAIN, report[name]["train"])  # before there were plans
    return [reports[name] for name in sorted(reports, key=order)]


def _workload(report: dict[str, Any]) -> str:
    job = report["job"]
    threads = {1: ", one thread", 2: ""}.get(job["threads"], f", {job['threads']} threads")
    return f"`{job['model']}`, batch {job['batch']}, {job['size']}x{job['size']}{threads}"


def _steps(report: dict[str, Any]) -> tuple[float, float | None, float]:
    """The milliseconds of a training step: ours, as a plan where that was timed, and the best PyTorch's."""
    rows = report["results"].items()
    times = {name: row["train"]["median_ms"] for name, row in rows if "train" in row}
    planned = report["results"]["minires"].get(TRAIN_PLANNED, {}).get("median_ms")
    theirs = min(time for name, time in times.items() if name.startswith("torch"))
    return times["minires"], planned, theirs


def _ms(time: float) -> str:
    return f"{time:.{0 if time >= 10 else 1}f} ms"


def _ratio(ratios: dict[str, float], what: str) -> str:
    return f"**{ratios[what]:.2f}**" if what in ratios else ""


def _parts(report: dict[str, Any]) -> str:
    columns = {"train": "training step", "forward": "forward", "backward": "backward", "optimizer": "Adam",
               TRAIN_PLANNED: "as a plan", "inference": "inference", FOLDED: "batch norms folded",
               PLANNED: "planned"}  # fmt: skip
    columns = {name: title for name, title in columns.items() if name in report["results"]["minires"]}
    lines = [
        "| ms, median | " + " | ".join(columns.values()) + " | peak memory |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name, row in report["results"].items():
        cells = " | ".join(f"{row[column]['median_ms']:.0f}" if column in row else "" for column in columns)
        memory = f"{row['peak_memory_MiB']} MiB" if "peak_memory_MiB" in row else ""
        lines.append(f"| {name} | {cells} | {memory} |")
    ratios = report["minires_over_pytorch_best"]
    ratios = {**ratios, TRAIN_PLANNED: ratios.get(BEST_TRAIN, math.nan)}
    cells = " | ".join(_ratio(ratios, column) for column in (*columns, "memory"))
    lines.append(f"| minires / the best PyTorch | {cells} |")
    return "\n".join(lines) + f"\n\n{report['what']}. {_where(report)}\n"


def agreement() -> str:
    """Distance from PyTorch with the same weights."""
    report = load("agreement")
    lines = ["| | logits | worst gradient of a parameter |", "|---|---|---|"]
    for start in ("last_gamma 0.25", "last_gamma 1.0"):
        for what, row in report[start].items():
            lines.append(f"| {start}, {what} | {row['logits']:.0e} | {row['worst_gradient']:.0e} |")
    return "\n".join(lines) + "\n"


PAPERS = {
    "vgg": "VGG, arXiv:1409.1556",
    "resnet": "ResNet and plain networks, arXiv:1512.03385",
    "resnet_signs": "the SIGNS exercise's ResNet-50",
    "resnet_v2": "ResNet V2, arXiv:1603.05027",
    "resnext": "ResNeXt, arXiv:1611.05431",
    "densenet": "DenseNet, arXiv:1608.06993",
    "senet": "SENet, arXiv:1709.01507",
    "bn_inception": "BN-Inception, arXiv:1502.03167",
}


def family() -> str:
    """A line per paper with where its proof stands, then every model with its figures."""
    report = load("family")
    lines = ["| paper | models | rows of figures | of them published | outputs and gradients equal to |",
             "|---|---|---|---|---|"]  # fmt: skip
    sums = [0, 0, 0, 0]
    for paper, title in PAPERS.items():
        row, count = report["papers"][paper], len(_models_of(report, paper))
        numbers = (count, row["hold"], row["rows"], row["published"])
        sums = [total + number for total, number in zip(sums, numbers, strict=True)]
        test, oracles = f"tests/models/test_{paper}.py", ", ".join(row["oracles"])
        lines.append(
            f"| [{title}](../../minires/models/{paper}.py) | {count} | {row['hold']} of {row['rows']} hold "
            f"| {row['published']} | {oracles}: [`{test}`](../../{test}) |"
        )
    lines.append(f"| **together** | {sums[0]} | **{sums[1]} of {sums[2]} hold** | {sums[3]} | |")
    lines += ["", "<details><summary>Every model, with parameters and MACs</summary>", "",
              "| model | input | classes | parameters | of them trained | MACs |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    for paper in PAPERS:
        for name, row in _models_of(report, paper).items():
            size = f"{row['input']}x{row['input']}"
            figures = (row["params_total"], row["params_trainable"], row["macs"])
            cells = " | ".join(f"{figure:,}" for figure in figures)
            lines.append(f"| `{name}` | {size} | {row['classes']} | {cells} |")
    return "\n".join(lines) + "\n\n</details>\n"


def _models_of(report: dict[str, Any], paper: str) -> dict[str, Any]:
    return {name: row for name, row in report["models"].items() if row["paper"] == paper}


def memory() -> str:
    """The memory of a training step of the deepest networks, and of DenseNet in two ways."""
    report = load("memory")
    lines = ["| one training step | batch | input | peak memory | time |", "|---|---|---|---|---|"]
    for row in report["rows"]:
        shared = row.get("variant", {}).get("shared")
        how = {None: "", True: ", shared buffer", False: ", plain concatenation"}[shared]
        size = f"{row['side']}x{row['side']}"
        lines.append(
            f"| `{row['model']}`{how} | {row['batch']} | {size} | {row['peak_MiB']:,} MiB "
            f"| {row['step_seconds']:.1f} s |"
        )
    return "\n".join(lines) + f"\n\n{_where(report)}\n"


def streaming() -> str:
    """What training on pictures beyond memory takes."""
    report = load("streaming")
    memory, rate, waiting = (report[name] for name in ("memory", "rate", "waiting"))
    side, count = f"{rate['side']}x{rate['side']}", f"{memory['pictures']:,} pictures of 256x256"
    lines = [
        "| | |", "|---|---|",
        f"| peak memory of training on {count}, {memory['pixels_MiB']:,} MiB | {memory['peak_MiB']:,} MiB |",
        f"| pictures of {rate['file']} decoded, cut, resized to {side} and normalised in a second, "
        f"{rate['threads']} threads | {rate['pictures_per_second']['minires']:,} |",
    ]  # fmt: skip
    if "ratio" in rate:
        theirs = rate["pictures_per_second"]["torchvision"]
        lines.append(f"| the same, torchvision with as many worker processes of PyTorch | {theirs:,} |")
    share, step = 100 * waiting["waited_share"], f"{waiting['step_seconds']:.2f} s"
    what = f"a step of {waiting['model']} at {side}, batch {waiting['batch']}"
    lines.append(f"| waited for pictures, of {what} ({step}) | {share:.1f}% |")
    return "\n".join(lines) + f"\n\n{_where(report)}\n"


def _best_of_pytorch(median: dict[str, float]) -> float:
    """Of a set of own pictures: the best accuracy that is none of ours."""
    return max(value for way, value in median.items() if not way.startswith("minires"))


def lab() -> str:
    """A line for each claim of a paper that was tried, then the verdicts on what it says in parts."""
    head = ("", "claim", "verdict", "agree, cannot be told, differ", "seeds", "takes about")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in lab_outcomes():
        counts = _counts([judged.verdict for judged in one.judged])
        link = f"../../benchmarks/results/lab/{one.folder.name}/report.md"
        lines.append(
            f"| {one.lab.number} | [{one.lab.title}]({link}) | **{one.verdict}** | {counts} "
            f"| {one.seeds} | {one.scale.about} |"
        )
    timed = "The time is that of two cores of 2021 (AMD EPYC, Zen 3), added up from single runs."
    return "\n".join(lines) + f"\n\n{timed}\n"


def _counts(verdicts: list[str]) -> str:
    """How many agree, cannot be told, differ."""
    return ", ".join(str(verdicts.count(verdict)) for verdict in VERDICTS)


def lab_outcomes() -> list[Outcome]:
    """What the labs of minires have found."""
    there = [one for one in LABS.values() if (RESULTS / "lab" / f"{one.name}-quick").exists()]
    return [recalled(one, "quick", RESULTS / "lab") for one in there]


def own_pictures() -> str:
    """A few own pictures: ours beside what a user of PyTorch would do."""
    report = load("own_pictures")
    ways = list(next(iter(report["sets"].values()))["median"])
    titles = [way if way.startswith("minires") else f"PyTorch, {way}" for way in ways]
    lines = [f"| pictures | {' | '.join(titles)} |", "|---|" + "---|" * len(ways)]
    for name, entry in report["sets"].items():
        source, count, each = re.fullmatch(r"(.*)(\d)x(\d+)", name).groups()
        best = _best_of_pytorch(entry["median"])
        figures = [
            f"**{percent(value)}**" if way == ways[0] or value == best else percent(value)
            for way, value in entry["median"].items()
        ]
        lines.append(f"| {source}: {count} classes, {each} of each | {' | '.join(figures)} |")
    return "\n".join(lines) + f"\n\n{_where(report)}\n"


def keras_folder() -> str:
    """ResNet50V2 of Keras on a picture folder: what the one command comes to, and its curves."""
    report = load("keras_folder")
    seeds, median = report["seeds"], report["median"]
    one = next(iter(seeds.values()))
    parts = ", ".join(f"{count} {part}" for part, count in one["pictures"].items())
    every = ", ".join(percent(seed["test_accuracy"]) for seed in seeds.values())
    lines = [
        f"| `{report['what']}` | |", "|---|---|",
        f"| pictures of SIGNS | {parts} |",
        f"| parameters that are trained | {one['parameters']:,} |",
        f"| test accuracy, median (every seed) | **{percent(median['test_accuracy'])}** ({every}) |",
        "| the same, without the test pictures that stand in `train` or `val`, too, byte for byte | "
        f"{percent(median['accuracy_without_twins'])} |",
        f"| time of one run | {median['seconds'] / 60:.1f} min |",
    ]  # fmt: skip
    curves = "![Loss and accuracy, epoch by epoch](../../benchmarks/results/keras_folder_curves.png)"
    return "\n".join(lines) + f"\n\n{_where(report)}\n\n{curves}\n"


def parallel() -> str:
    """Training by several processes."""
    report = load("parallel")
    return f"{parallel_tables.measured(report)}\n{_where(report)}\n"


def parallel_model() -> str:
    """What a model on paper says of many machines."""
    return parallel_tables.predicted(load("parallel"))


def crops() -> str:
    """One view of each test picture beside ten, and beside whole pictures."""
    report = load("crops")
    starter, runs = report["starter"], report["seeds"]["runs"]
    lines = ["| | one crop | ten crops |", "|---|---|---|"]

    def row(what: str, *found: list[dict[str, Any]]) -> None:
        shown = (", ".join(percent(one["accuracy"]) for one in each) for each in found)
        lines.append(f"| {what} | {' | '.join(shown)} |")

    ways, what = starter["ways"], f"the starter on {starter['test_pictures']:,} test pictures of CIFAR-10"
    row(f"{what}: 32x32, cut out of 36", [ways["1 crop at 36"]], [ways["10 crops at 36"]])
    row("the same, cut out of 40", [ways["1 crop at 40"]], [ways["10 crops at 40"]])
    both = [ways["1 crop at 32"]], [ways["whole and mirrored at 32"]]
    row("the same, cut out of 32: all ten are the picture or its mirror image", *both)
    for epochs, seeds in runs.items():
        what = f"ResNet-20, {epochs} on 800 hands, on 400 others: 40x40, cut out of 48; {len(seeds)} seeds"
        each = [seed["ways"] for seed in seeds.values()]
        row(what, [ways["1 crop at 48"] for ways in each], [ways["10 crops at 48"] for ways in each])
    return "\n".join(lines) + f"\n\n{_where(report)}\n"


def torture() -> str:
    """What was tried to break it, and what fell."""
    kills, files, page = (load(f"torture_{name}") for name in ("kills", "files", "page"))
    killed = kills["kills"]
    rows = {kind: row for kind, row in kills["kinds"].items() if kind not in ("one", "two")}
    disasters, fell = (sum(row[name] for row in rows.values()) for name in ("cases", "with faults"))
    lost = sum(kills["kinds"][kind]["with faults"] for kind in ("one", "two"))
    lines = [
        "| tried | how many | faults |",
        "|---|---|---|",
        f"| `kills.py`: a run is killed, resumed, and its bits compared | {killed} kills | {lost} |",
        f"| `kills.py`: full disk, read-only, signals, damage, ... | {disasters} runs | {fell} |",
    ]
    told = ("traceback", "hang", "memory", "code run", "silently different")
    found = ", ".join(f"{name} {files[name]}" for name in told)
    rest = files["cases"] - sum(files[name] for name in ("same", "different", "refused", *told))
    lines.append(
        f"| `files.py`: files of {len(files['kinds'])} kinds, changed at random or made by hand | "
        f"{files['cases']:,} files | {found}, other {rest} |"
    )
    tries = sum(row["tried"] for row in page["attacks"])
    what = f"`page.py`: {len(page['attacks'])} attacks on the page of `minires play`"
    lines.append(f"| {what} | {tries:,} connections | {len(page['fell'])} |")
    for name in ("ranks", "ranks_mpich"):
        report = load(f"torture_{name}")
        fell = sum(row["with faults"] for row in report["kinds"].values())
        jobs = sum(row["times"] - row["skipped"] for row in report["kinds"].values())
        longest = max(row["longest seconds"] or 0 for row in report["kinds"].values())
        silent = report["launcher silent"]
        more = f"; in {silent}, killed before MPI had begun, the launcher did not say which" if silent else ""
        what = f"`ranks.py`: a rank of {report['ranks']} fails in one of {len(report['kinds'])} ways"
        lines.append(
            f"| {what}, the job ends soon, says why, and goes on; {report['mpi']} | {jobs} jobs, ended after "
            f"{longest:.0f} s at the latest | {fell}{more} |"
        )
    return "\n".join(lines) + f"\n\n{_where(files)}\n"


def _where(report: dict[str, Any]) -> str:
    return f"Measured {report['machine']['date']} on {_machine(report)}"


def _machine(report: dict[str, Any]) -> str:
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    return f"{machine['processor']}, {machine['cores']} cores; {versions}."


TABLES = {
    "lab": lab,
    "headline": headline,
    "accuracy": accuracy,
    "speed": speed,
    "engines": engines,
    "first_run": first_run,
    "agreement": agreement,
    "bf16": bf16,
    "family": family,
    "memory": memory,
    "streaming": streaming,
    "own_pictures": own_pictures,
    "keras_folder": keras_folder,
    "crops": crops,
    "parallel": parallel,
    "parallel_model": parallel_model,
    "torture": torture,
}


def rewritten(text: str) -> str:
    """A page's text with every table in it as the results say."""
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def main() -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    changed = {page: rewritten(text) for page, text in texts.items() if rewritten(text) != text}
    if "--check" in sys.argv[1:]:
        sys.exit(bool(changed))
    for page, text in changed.items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
