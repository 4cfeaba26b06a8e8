"""What ``parallel.py`` has measured, as Markdown; ``readme.py`` writes it into the guide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = ("gradients", "batch norm", "data")  # of what a step waits for
QUIET = 0.03  # the share of the cores that others may take while something is measured


def measured(report: Mapping[str, Any]) -> str:
    """A line per way to run: its step, what it waits for, what it sends; then overlap, model and equality."""
    lines = [
        "| way | step | over one process | speed-up | efficiency | over one process, planned "
        "| waits: gradients | batch norm | data | messages | bytes |",
        "|---" * 11 + "|",
    ]
    for name, row in report["variants"].items():
        if row["delayed"] or row["batch"] != report["batch"]:
            continue
        waits = (f"{1000 * row[kind]:.1f} ms" if row[kind] else "" for kind in KINDS)
        cells = [
            _way(name, row),
            _ms(row["seconds"]), f"**{row['over_one_process']:.2f}**", f"{row['speed_up']:.2f}",
            f"{100 * row['efficiency']:.0f}%" if "efficiency" in row else "",
            f"{row['over_one_process_planned']:.2f}", *waits,
            f"{row['messages']:.0f}", f"{row['bytes']:,.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    model, dtype, rounds = (report[name] for name in ("model", "dtype", "rounds"))
    turns = "1 round" if rounds == 1 else f"{rounds} rounds in turn"
    what = f"`{model}`, batch {report['batch']}, {dtype}, {turns}."
    if (others := report["others"]) > QUIET:
        what += f" **Others took up to {100 * others:.0f}% of the cores meanwhile: to be measured again.**"
    others = (part(report) for part in (_overlap, _memory, _equality))
    return "\n\n".join(["\n".join(lines), what, *others]) + "\n"


def _way(name: str, row: Mapping[str, Any]) -> str:
    """A variant in words, with its threads, and that it has more of them than there are cores."""
    threads = f"{row['threads']} {'thread' if row['threads'] == 1 else 'threads'}"
    told = name if "thread" in name else f"{name}, {threads}{' each' if row['ranks'] > 1 else ''}"
    return f"{told} (oversubscribed)" if row["oversubscribed"] else told


def _overlap(report: Mapping[str, Any]) -> str:
    rows, found = report["variants"], report["overlap"]
    free, flat, both = (rows[name] for name in ("2 ranks", "2 ranks, delayed", "2 ranks, delayed, overlap"))
    delay = f"{1000 * found['delay_seconds']:.0f} ms"
    return "\n".join([
        "| gradients through a slow network | step | the model says | waits |", "|---|---|---|---|",
        f"| no delay | {_ms(free['seconds'])} | | {_ms(free['gradients'])} |",
        f"| {delay} more, in one call behind the backward pass | {_ms(flat['seconds'])} "
        f"| {_ms(found['flat_seconds_predicted'])} | {_ms(flat['gradients'])} |",
        f"| the same in {both['messages']:.0f} messages, by a thread | {_ms(both['seconds'])} "
        f"| {_ms(found['overlap_seconds_predicted'])} | {_ms(both['gradients'])} |",
        f"| hidden, of the time of a step | **{100 * found['hidden']:.0f}%** "
        f"| {100 * found['hidden_predicted']:.0f}% | |",
        f"| hidden, of the wait | **{100 * found['hidden_of_wait']:.0f}%** | | |",
    ])  # fmt: skip


def _memory(report: Mapping[str, Any]) -> str:
    found = report["memory"]
    network = f"a message {1e6 * found['alpha']:.1f} us and {found['beta'] / 1e9:.1f} GB/s"
    return "\n".join([
        f"| two ranks of one machine: {network} ({found['library']}) | the model says | measured |",
        "|---|---|---|",
        "| sum of the gradients, and waiting for the slower rank "
        f"| {1000 * found['sum_seconds_predicted']:.2f} ms | {1000 * found['sum_seconds_measured']:.2f} ms |",
        "| step: half of the batch on one thread by itself, and the sum "
        f"| {_ms(found['step_seconds_predicted'])} | {_ms(found['step_seconds_measured'])} |",
    ])  # fmt: skip


def _equality(report: Mapping[str, Any]) -> str:
    lines = [
        f"| parameters after {report['equality']['steps']} steps, beside one process | worst parameter "
        "| all together |",
        "|---|---|---|",
    ]
    for row in report["equality"]["rows"]:
        norm = "over all" if row["batch_norm"] == "sync" else "in each"
        what = f"{row['ranks']} ranks, {row['dtype']}, batch norm {norm}"
        lines.append(f"| {what} | {row['largest']:.0e} | {row['distance']:.0e} |")
    return "\n".join(lines)


def predicted(report: Mapping[str, Any]) -> str:
    """Efficiency without and with overlap: a line per case and number of machines, a column per network."""
    rows = report["predictions"]
    networks, nodes = ({row[name]: None for row in rows} for name in ("network", "nodes"))
    lines = [f"| ResNet-50, without / with overlap | machines | {' | '.join(networks)} |",
             "|---" * (2 + len(networks)) + "|"]  # fmt: skip
    for what in {row["what"]: None for row in rows}:
        for count in (one for one in nodes if one in (8, 64)):
            found = [row for row in rows if (row["what"], row["nodes"]) == (what, count)]
            pairs = ((100 * row["without_overlap"], 100 * row["with_overlap"]) for row in found)
            cells = (f"{without:.0f} / {with_it:.0f}%" for without, with_it in pairs)
            lines.append(f"| {what} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"
