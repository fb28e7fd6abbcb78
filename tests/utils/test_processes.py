# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A folder has one writer, and workers do not outlive the process that started them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from wsis_d2.data.datasets.builtin.preparation_command import command_parser
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.processes import only_writer, usable_cores

HOLD = """
import sys, time
from wsis_d2.utils.processes import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""
WITH_A_WORKER = HOLD.replace("import sys, time", "import os, sys, time").replace(
    '    print("held"',
    '    if os.fork() == 0:\n        time.sleep(1)\n        os._exit(0)\n    print("held"',
)
PARENT = """
import subprocess, sys, time
code = "import time; from wsis_d2.utils.processes import end_with_parent; end_with_parent();" \\
       "print('ready', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def start(code, *arguments):
    environment = {**os.environ, "WSIS_D2_NO_REGISTER": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_folder_that_another_process_writes_is_refused_until_that_one_is_gone(tmp_path):
    holder = start(HOLD, tmp_path / "run")
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"run: another command.*process {holder.pid} on "):
            with only_writer(tmp_path / "run"):
                pass
        with only_writer(tmp_path / "other"):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with only_writer(tmp_path / "run"):  # a kill leaves no lock
        with pytest.raises(InputError, match=f"process {os.getpid()} on "):
            with only_writer(tmp_path / "run"):
                pass
    with only_writer(tmp_path / "run"):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_workers_of_a_killed_process_are_waited_for(tmp_path):
    holder = start(WITH_A_WORKER, tmp_path / "run")
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    with only_writer(tmp_path / "run"):
        pass


def test_a_worker_ends_when_its_parent_is_killed():
    parent = start(PARENT)
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(600):
        if not alive(child):
            break
        time.sleep(0.1)
    assert not alive(child)


def test_cores_are_told_on_systems_without_affinity(monkeypatch):
    assert 1 <= usable_cores() <= os.cpu_count()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == os.cpu_count()
    # A command that prepares a data set has them as its default.
    assert command_parser("", "").parse_args([]).workers == os.cpu_count()


def test_a_worker_whose_parent_was_killed_while_it_started_ends_too():
    code = (
        "import multiprocessing, os, time, types\n"
        "gone = types.SimpleNamespace(pid=os.getppid() + 1)\n"
        "multiprocessing.parent_process = lambda: gone\n"
        "from wsis_d2.utils.processes import end_with_parent\n"
        "end_with_parent()\n"
        "time.sleep(60)\n"
    )
    assert start(code).wait(timeout=50) == 1
