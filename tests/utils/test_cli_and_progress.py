# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Exit statuses of tools, progress lines, and the environment table."""

import argparse
import logging

import pytest

from wsis_d2.utils.cli import main_with_errors, positive
from wsis_d2.utils.collect_env import collect_env
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.progress import format_seconds, progress


def status_of(main):
    with pytest.raises(SystemExit) as error:
        main_with_errors(main, [])
    return error.value.code


def test_exit_statuses(capsys):
    assert status_of(lambda argv: None) == 0
    assert status_of(lambda argv: 3) == 3

    def bad(argv):
        raise InputError("a.json: broken")

    assert status_of(bad) == 2
    assert capsys.readouterr().err == "error: a.json: broken\n"

    def missing(argv):
        open("no/such/file")

    assert status_of(missing) == 2
    assert "error: no/such/file: No such file" in capsys.readouterr().err

    def interrupted(argv):
        raise KeyboardInterrupt

    assert status_of(interrupted) == 130

    def bug(argv):
        raise RuntimeError("a bug keeps its traceback")

    with pytest.raises(RuntimeError):
        main_with_errors(bug, [])


def test_numbers_of_at_least_one(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=positive)
    assert parser.parse_args(["--limit", "3"]).limit == 3
    for text in ("0", "-1", "x"):
        with pytest.raises(SystemExit):
            parser.parse_args([f"--limit={text}"])
        assert "--limit" in capsys.readouterr().err


@pytest.mark.parametrize(
    "seconds,text", [(0, "0:00"), (61.4, "1:01"), (3599.6, "1:00:00"), (7325, "2:02:05")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_progress_yields_everything_and_logs_the_end(caplog):
    with caplog.at_level(logging.INFO, logger="wsis_d2.utils.progress"):
        assert list(progress(range(5), desc="masks", log_seconds=1000)) == [0, 1, 2, 3, 4]
    assert len(caplog.records) == 1
    assert "masks: 5/5 images" in caplog.text and "left" in caplog.text


def test_collect_env_names_what_matters():
    text = collect_env()
    for word in ("torch", "detectron2", "operators", "cores usable", "numpy"):
        assert word in text
