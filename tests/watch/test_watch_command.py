"""`minires watch` as a program: the page until Ctrl-C, the terminal's view, and what is refused."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from minires import cli

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}


def test_the_text_is_printed_once_where_there_is_no_terminal(finished, capsys):
    for more in ([], ["--once"]):
        assert cli.main(["watch", str(finished), "--text", *more]) == 0
        out, err = capsys.readouterr()
        assert out.startswith("finished: small on stripes") and "conv1" in out and not err
        assert "\x1b" not in out


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["{run}", "--once"], 2, "use it with --text"),
        (["{run}", "--text", "--no-browser"], 2, "--text opens no page"),
        (["{run}", "--port", "99999", "--no-browser"], 2, "port is 99999"),
        (["{run}/nothing"], 1, "does not exist"),
        (["."], 1, "there is no run in ."),
    ],
)
def test_what_makes_no_sense_is_refused(options, status, said, finished, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["watch", *(one.format(run=finished) for one in options)]) == status
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


@pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX")
def test_the_page_is_there_until_ctrl_c_and_leaves_the_run_as_it_was(stopped):
    before = {path: path.stat().st_mtime_ns for path in [stopped, *stopped.iterdir()]}
    with subprocess.Popen(
        [sys.executable, "-m", "minires", "watch", str(stopped), "--no-browser"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    ) as program:  # fmt: skip
        found = re.search(r"is shown at http://127\.0\.0\.1:(\d+)/(\S+)/", program.stdout.readline())
        assert program.stdout.readline().endswith("Ctrl-C ends the page, not the run.\n")
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
        connection.request("GET", f"/{found[2]}/now?known=0")
        assert json.loads(connection.getresponse().read())["state"] == "stopped"
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=20)
    assert (out, err, program.returncode) == ("Stopped.\n", "", 0)
    assert before == {path: path.stat().st_mtime_ns for path in [stopped, *stopped.iterdir()]}
