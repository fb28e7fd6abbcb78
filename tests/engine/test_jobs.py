# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The job runner: order, skipping, failure and interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from wsis_d2.engine.jobs import Job, run_jobs
from wsis_d2.utils.errors import InputError


def job(name, code, needs=()):
    return Job(name, [sys.executable, "-c", code], needs)


def append(path, text):
    return f"open({str(path)!r}, 'a').write({text!r})"


def test_needs_come_first_and_finished_jobs_are_not_run_again(tmp_path):
    trace = tmp_path / "trace"
    jobs = [
        job("a", append(trace, "a")),
        job("b", append(trace, "b"), ["a"]),
        job("c", append(trace, "c"), ["b"]),
    ]
    run_jobs(jobs, tmp_path / "jobs", workers=2, say=lambda line: None)
    assert trace.read_text() == "abc"
    run_jobs(jobs, tmp_path / "jobs", workers=2, say=lambda line: None)
    assert trace.read_text() == "abc"


def test_a_changed_job_is_run_again_with_what_needs_it(tmp_path):
    trace = tmp_path / "trace"
    last = job("b", append(trace, "b"), ["a"])
    run_jobs([job("a", append(trace, "a")), last], tmp_path / "jobs", workers=1, say=print)
    run_jobs([job("a", append(trace, "A")), last], tmp_path / "jobs", workers=1, say=print)
    assert trace.read_text() == "abAb"


def test_a_job_whose_files_have_changed_is_run_again(tmp_path):
    trace, recipe, base = (tmp_path / name for name in ("trace", "recipe.yaml", "base.yaml"))
    boxes = tmp_path / "boxes.json"
    recipe.write_text("_BASE_: base.yaml")
    base.write_text("_BASE_: [recipe.yaml, none.yaml]")  # its reader tells
    made = job("a", append(trace, "a"))
    jobs = [replace(made, command=[*made.command, str(recipe)], files=[boxes])]
    changes = [
        (base, "SEED: 1", "aa"), (base, "SEED: 1  # drawn", "aa"), (recipe, "SEED: 2", "aaa"),
        (boxes, "{}", "aaaa"), (boxes, "{}", "aaaa"),
    ]  # fmt: skip
    run_jobs(jobs, tmp_path / "jobs", workers=1, say=print)
    for file, content, wanted in changes:
        file.write_text(content)
        run_jobs(jobs, tmp_path / "jobs", workers=1, say=print)
        assert trace.read_text() == wanted
    stamp = json.loads((tmp_path / "jobs" / "a.done").read_text())
    del stamp["files"]  # as an older version left it
    (tmp_path / "jobs" / "a.done").write_text(json.dumps(stamp))
    run_jobs(jobs, tmp_path / "jobs", workers=1, say=print)
    assert trace.read_text() == "aaaa"


def test_a_failure_is_named_with_the_end_of_its_log_and_keeps_what_is_done(tmp_path):
    trace = tmp_path / "trace"
    good = job("good", append(trace, "g"))
    bad = job("bad", "print('the reason'); raise SystemExit(3)", ["good"])
    with pytest.raises(InputError, match=r"(?s)bad ended with status 3.*the reason"):
        run_jobs([good, bad], tmp_path / "jobs", workers=2, say=print)
    fixed = job("bad", append(trace, "m"), ["good"])
    run_jobs([good, fixed], tmp_path / "jobs", workers=2, say=print)
    assert trace.read_text() == "gm"


def test_a_failure_stops_the_others(tmp_path):
    pid_file = tmp_path / "pid"
    slow = job("slow", f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); "
               "time.sleep(60)")  # fmt: skip
    bad = job("bad", f"import os, time\nwhile not os.path.exists({str(pid_file)!r}): "
              "time.sleep(0.05)\nraise SystemExit(1)")  # fmt: skip
    start = time.monotonic()
    with pytest.raises(InputError, match="bad ended"):
        run_jobs([slow, bad], tmp_path / "jobs", workers=2, say=print)
    assert time.monotonic() - start < 50
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_no_more_than_workers_at_once(tmp_path):
    code = (
        "import os, time, sys\n"
        f"folder = {str(tmp_path)!r}\n"
        "open(f'{folder}/{os.getpid()}.on', 'w').close(); time.sleep(0.3)\n"
        "import glob; print(len(glob.glob(f'{folder}/*.on')))\n"
        "os.remove(f'{folder}/{os.getpid()}.on')\n"
    )
    run_jobs([job(f"j{i}", code) for i in range(5)], tmp_path / "jobs", workers=2, say=print)
    counts = [int((tmp_path / "jobs" / f"j{i}.log").read_text()) for i in range(5)]
    assert max(counts) <= 2


def test_wrong_needs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown"):
        run_jobs([job("a", "", ["nobody"])], tmp_path, workers=1)
    with pytest.raises(ValueError, match="before what it needs"):
        run_jobs([job("a", "", ["b"]), job("b", "")], tmp_path, workers=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_jobs_end_with_their_runner(tmp_path, number):
    pid_file = tmp_path / "pid"
    code = (
        "import os, time\nfrom wsis_d2.utils.cli import main_with_errors\n"
        "def main(argv):\n"
        f"    open({str(pid_file)!r}, 'w').write(str(os.getpid()))\n    time.sleep(60)\n"
        "main_with_errors(main)"
    )
    script = (
        "import signal, sys\nfrom wsis_d2.engine.jobs import Job, run_jobs\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup has it ignored
        f"run_jobs([Job('a', [sys.executable, '-c', {code!r}])], {str(tmp_path / 'jobs')!r}, "
        "workers=1)"
    )
    environment = {**os.environ, "WSIS_D2_NO_REGISTER": "1"}
    runner = subprocess.Popen([sys.executable, "-c", script], env=environment)
    while not (pid_file.exists() and pid_file.read_text()):
        assert runner.poll() is None
        time.sleep(0.05)
    runner.send_signal(number)
    status = runner.wait(timeout=30)
    assert status == (128 + 15 if number == signal.SIGTERM else -number)
    job_id = int(pid_file.read_text())
    end = time.monotonic() + 30
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < end:
            os.kill(job_id, 0)
            time.sleep(0.1)


def test_no_process_at_all_is_refused(tmp_path):
    with pytest.raises(InputError, match="--workers 0: at least 1"):
        run_jobs([job("a", "pass")], tmp_path / "jobs", workers=0)
