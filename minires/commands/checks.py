"""What looks at this machine: gradcheck, data, doctor."""

from __future__ import annotations

import argparse
from pathlib import Path

from minires.commands.loading import FAILED, print_json, searched
from minires.errors import ConfigError


def run_gradcheck(options: argparse.Namespace) -> int:
    from minires.ops.cases import CASES, check_all

    rows, widths = (
        [],
        (max(map(len, CASES)), max(len(case.name) for table in CASES.values() for case in table)),
    )
    results = check_all(options.operations or None)
    if not options.json:
        print(f"{'operation':<{widths[0]}}  {'case':<{widths[1]}}  worst error  verdict  seconds")
    for row in results:
        rows.append(row)
        if not options.json:
            verdict = "right" if row.ok else "WRONG"
            print(f"{row.op:<{widths[0]}}  {row.case:<{widths[1]}}  {row.error:>11.1e}  {verdict:<7}  "
                  f"{row.seconds:>7.2f}", flush=True)  # fmt: skip
    wrong = [row for row in rows if not row.ok]
    seconds = sum(row.seconds for row in rows)
    if options.json:
        print_json({
            "ok": not wrong, "seconds": seconds,
            "cases": [{"op": row.op, "case": row.case, "error": row.error, "ok": row.ok,
                       "seconds": row.seconds} for row in rows],
        })  # fmt: skip
        return FAILED if wrong else 0
    for row in wrong:
        print(f"\n{row.op}, {row.case}: {row.report}")
    tally = f"{len(wrong)} of {len(rows)} cases are WRONG" if wrong else f"all {len(rows)} cases are right"
    print(f"\n{tally}; {seconds:.1f} s. The error is relative, against numeric gradients in float64.")
    return FAILED if wrong else 0


def run_data(options: argparse.Namespace) -> int:
    from minires import data

    if options.name is None:
        if options.source or options.download:
            raise ConfigError("say which data set: minires data signs --download, for example")
        found = {name: data.find(name) for name in data.names()}
        listing = [
            {"name": name, "available": name == "hands" or place is not None, "path": place and str(place)}
            for name, place in found.items()
        ]
        if options.json:
            print_json({"data": listing, "searched": [str(root) for root in searched()]})
            return 0
        for one in listing:
            where = "rendered when used, needs no file" if one["name"] == "hands" else "not found"
            print(f"{one['name']:<8}  {one['path'] or where}")
        print(f"\nSearched: {', '.join(map(str, searched()))}. A picture folder or zip is used by its path.")
        return 0
    report = None
    if options.source:
        report = data.prepare(options.name, Path(options.source))
    elif options.download:
        report = data.download(options.name)
    if report and not options.json:
        print(report)
    splits = data.load(options.name, size=options.size)
    parts = {name: getattr(splits, name) for name in ("train", "val", "test")}
    first, high, wide, _ = splits.train.images.shape
    counts = {name: [int((part.labels == k).sum()) for k in range(len(part.classes))]
              for name, part in parts.items()}  # fmt: skip
    if options.json:
        print_json({
            "name": splits.train.name, "source": splits.source, "report": report, "size": [high, wide],
            "classes": splits.train.classes, **{name: len(part) for name, part in parts.items()},
            "per_class": counts,
        })  # fmt: skip
        return 0
    print(f"{splits.source}: pictures {wide} wide, {high} high")
    width = max(len("class"), *map(len, splits.train.classes))
    print(f"{'class':<{width}}" + "".join(f"{name:>8}" for name in parts))
    for k, label in enumerate(splits.train.classes):
        print(f"{label:<{width}}" + "".join(f"{counts[name][k]:>8}" for name in parts))
    print(f"{'all':<{width}}" + "".join(f"{len(part):>8}" for part in parts.values()))
    return 0


def run_doctor(options: argparse.Namespace) -> int:
    from minires import doctor

    report = doctor.examine()
    if options.json:
        print_json(report)
    else:
        print(doctor.describe(report))
    return 0 if report["ok"] else FAILED
