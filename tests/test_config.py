# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Reading a config: overrides, and bad files that are told in one line and run no code."""

import pytest

from wsis_d2.config import read_config
from wsis_d2.utils.errors import InputError


def test_file_and_overrides(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("SOLVER:\n  MAX_ITER: 7\n")
    cfg = read_config(str(file), ["SEED", "3"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SEED) == (7, 3)


@pytest.mark.parametrize(
    "text",
    ["NO_SUCH_KEY: 1\n", "SOLVER: [unclosed\n", "SOLVER:\n  MAX_ITER: [1]\n", "- a\n- b\n", "7\n"],
)
def test_bad_files_are_named(tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match="bad.yaml") as error:
        read_config(str(file))
    assert "\n" not in str(error.value)


def test_a_hostile_file_runs_nothing(tmp_path):
    trace = tmp_path / "trace"
    file = tmp_path / "hostile.yaml"
    file.write_text(f"OUTPUT_DIR: !!python/object/apply:os.system ['touch {trace}']\n")
    with pytest.raises(InputError, match="hostile.yaml"):
        read_config(str(file))
    assert not trace.exists()


def test_bad_overrides_are_named():
    with pytest.raises(InputError, match="NO.KEY"):
        read_config(None, ["NO.KEY", "1"])


@pytest.mark.parametrize(
    "key,value",
    [
        ("CLEAN.SCORE_THRESHOLD", 1.5),
        ("CAM.THRESHOLD", 0.0),
        ("ITERATIVE.WORKERS", 0),
        ("ITERATIVE.BOX_STORES", [["weak"]]),
        ("MODEL.WSIS.DETECTOR_BOXES", [["weak", 7]]),
    ],
)
def test_values_that_would_fail_hours_later_are_named_at_once(key, value):
    with pytest.raises(InputError, match=f"^{key} is .*expected"):
        read_config(None, [key, value])
