"""What is told while a run goes: how often, how far, to whom; in a notebook a bar and curves that grow."""

from __future__ import annotations

import io
import sys
import warnings

import pytest
from train.small_run import CONFIG, small_model, small_splits

from minires.train import Config, Trainer, audience, notebook, telling
from minires.train.telling import LINES, Listener, ProgressLines, lines_of_epochs

pytestmark = pytest.mark.usefixtures("no_figures")


def trainer(out, said, *, progress=None, **changes):
    config = Config.from_dict({**CONFIG.to_dict(), **changes})
    return Trainer(
        config, out, splits=small_splits(), model=small_model(), progress=progress, say=said.append
    )  # fmt: skip


def told(history, epochs):
    return [row["epoch"] for n in range(len(history)) for row in lines_of_epochs(history[: n + 1], epochs)]


def rows(accuracies):
    return [
        {"epoch": n, "val_accuracy": accuracy, "val_loss": 1.0, "train_loss": 1.0 / n}
        for n, accuracy in enumerate(accuracies, 1)
    ]


def test_each_epoch_of_a_run_of_few_is_told_and_of_many_some():
    assert told(rows([0.5] * LINES), LINES) == list(range(1, LINES + 1))
    for epochs in (61, 100, 1000, 4321):
        rising = told(rows([n / epochs for n in range(epochs)]), epochs)
        assert len(rising) <= LINES and rising[0] == 1 and rising[-1] == epochs
        assert rising == sorted(set(rising))
        best = 7 + epochs // 3
        some = told(rows([0.9 if n == best else 0.5 for n in range(1, epochs + 1)]), epochs)
        assert best in some and len(some) <= LINES
    without = [{**row, "val_accuracy": None, "train_loss": abs(row["epoch"] - 50)} for row in rows([0] * 100)]
    assert 50 in told(without, 100)
    stopped = rows([0.5] * 45)
    assert lines_of_epochs(stopped, 100) == [] and lines_of_epochs(stopped, 100, last=True) == [stopped[-1]]


class Clock:
    """A time that goes on by a second with each step."""

    now = 1000.0

    def monotonic(self):
        return self.now


def test_where_there_is_no_terminal_a_line_now_and_then_says_how_far_it_is(tmp_path, monkeypatch):
    clock, said = Clock(), []
    monkeypatch.setattr(telling, "time", clock)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    run = trainer(tmp_path / "run", said, epochs=4)
    step = run._step

    def slow(x, y):
        step(x, y)
        clock.now += 7

    run._step = slow
    run.run()
    lines = [line for line in said if ", step " in line]
    # Every 35 seconds is each fifth step, and the line of an epoch counts as one.
    assert [line.split(", loss")[0] for line in lines][:3] == [
        "epoch 1/4, step 5 of 12", "epoch 1/4, step 10 of 12", "epoch 2/4, step 5 of 12"
    ]  # fmt: skip
    assert lines[0].endswith(f"about {round(43 * 7 / 60)} min left") and len(lines) == 8
    assert not sys.stderr.getvalue()  # and no bar


def test_a_bar_or_a_wish_for_none_takes_the_place_of_these_lines(tmp_path, monkeypatch):
    for progress in (True, False):
        found = list(audience.observers(CONFIG, progress))
        assert not [one for one in found if isinstance(one, ProgressLines)]
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert [type(one).__name__ for one in audience.observers(CONFIG, None)] == ["Watch", "ProgressLines"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert audience.shows_bar(None) and not audience.shows_bar(False)
    monkeypatch.setattr(sys, "stderr", None)
    assert not audience.shows_bar(True)


def test_a_listener_keeps_the_last_lines_though_nobody_hears_them():
    def gone(line):
        raise BrokenPipeError

    listener = Listener(gone)
    for number in range(500):
        listener(str(number))
    assert list(listener.said) == [str(number) for number in range(400, 500)]


CELLS = """
import sys
sys.path[:0] = {path!r}
from train.small_run import CONFIG, small_model, small_splits
from minires.train import Config, Trainer
import warnings
warnings.simplefilter("error")
config = Config.from_dict({{**CONFIG.to_dict(), "epochs": 3}})
summary = Trainer(config, {out!r}, splits=small_splits(), model=small_model()).run()
summary["steps"]
"""


def test_in_a_notebook_there_is_a_bar_and_one_picture_of_curves_that_grows(tmp_path):
    """With a real kernel, where ipywidgets may be missing: nothing warns, and the bar is text then."""
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    manager = pytest.importorskip("jupyter_client.manager", reason="needs jupyter_client")
    kernel = manager.KernelManager()
    kernel.kernel_spec.argv[0] = sys.executable
    kernel.start_kernel()
    client = kernel.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        seen = []
        code = CELLS.format(path=[path for path in sys.path if path], out=str(tmp_path / "run"))
        reply = client.execute_interactive(code, timeout=240, output_hook=seen.append)
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok", reply["content"]
    pictures = [one for one in seen if "image/png" in one["content"].get("data", ())]
    shown = [one for one in pictures if one["msg_type"] == "display_data"]
    grown = [one for one in pictures if one["msg_type"] == "update_display_data"]
    assert len(shown) == 1 and grown  # one place, and at least the last epoch drawn anew in it
    place = shown[0]["content"]["transient"]["display_id"]
    assert {one["content"]["transient"]["display_id"] for one in grown} == {place}
    assert grown[-1]["content"]["data"]["image/png"] != shown[0]["content"]["data"]["image/png"]
    text = "".join(one["content"].get("text", "") for one in seen if one["msg_type"] == "stream")
    widgets = [one for one in seen if "application/vnd.jupyter.widget-view+json" in str(one["content"])]
    assert "epoch 3/3" in text and ("|" in text or widgets) and "Warning" not in text


def test_outside_of_a_notebook_nothing_is_displayed(monkeypatch):
    assert not notebook.is_notebook()
    with warnings.catch_warnings(action="error"):
        assert notebook.bar_class().__module__ == "tqdm.std"
    assert not [one for one in audience.observers(CONFIG, None) if isinstance(one, notebook.LiveCurves)]
