# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""YAML of others: no code, no aliases without end, no circles."""

import pytest

from wsis_d2.config import read_config
from wsis_d2.data.importers.yolo import read_yolo_classes
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.yaml_io import parse_yaml

LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12)
)


def test_plain_values_and_a_few_aliases_are_read():
    assert parse_yaml("a: &b [1, x]\nc: *b\n", "f.yaml") == {"a": [1, "x"], "c": [1, "x"]}
    assert parse_yaml("", "f.yaml") is None
    assert parse_yaml("{a: {x: 1}, b: {<<: {x: 2, y: 3}, x: 4}}", "f.yaml") == {
        "a": {"x": 1},
        "b": {"x": 4, "y": 3},
    }
    assert parse_yaml("{<<: {x: 2}, <<: {x: 3, y: 3}}", "f.yaml") == {"x": 2, "y": 3}


@pytest.mark.parametrize(
    "text,told",
    [
        (LAUGHS, "unfold to too many"),
        ("a: &a [*a]", "unfold to too many"),
        ("a: &a {b: *a}", "unfold to too many"),
        ("[" * 5000, "nested too deeply"),
        ("a: !!python/object/apply:os.mkdir [x]", "no valid YAML"),
        ("a: b: c", "no valid YAML"),
        ("{[1]: 2}", "no valid YAML"),
        ("a: 2000-99-99", "no valid YAML"),
        ("a: !!int x", "no valid YAML"),
        ("a: \0", "no valid YAML"),
        ("--- 1\n--- 2", "no valid YAML"),
        ("A: {b: 1}\nC: 2\nA: {d: 3}", "line 3: A is there twice"),
        ("- A: {b: 1, b: 1}", "line 1: b is there twice"),
    ],
    ids=range(13),
)
def test_the_rest_is_refused(text, told):
    with pytest.raises(InputError, match=f"^f.yaml: .*{told}") as error:
        parse_yaml(text, "f.yaml")
    assert str(error.value).isprintable() and len(str(error.value)) < 300


def test_yolo_s_classes_are_read_by_it(tmp_path):
    """A message that shows such a value would not come to an end."""
    path = tmp_path / "data.yaml"
    path.write_text(f"{LAUGHS}names: [cow]\nkpt_shape: *a11\n")
    with pytest.raises(InputError, match="data.yaml: .*unfold to too many"):
        read_yolo_classes([path])


@pytest.mark.parametrize(
    "text,told",
    [
        (f"DATASETS:\n  OWN: {LAUGHS!r}", "config.yaml"),
        (f"{LAUGHS}DATASETS: {{OWN: *a11}}", "unfold to too many"),
        ("_BASE_: config.yaml", "leads back to itself"),
        ("_BASE_: ./other/../config.yaml", "leads back to itself"),
        ("_BASE_: gone.yaml", "gone.yaml: no such file"),
        ("_BASE_: [5]", "_BASE_ is 5"),
        ("_BASE_: {a: 1}", "_BASE_ is"),
        ("- 1", "holds list"),
        ("", "holds NoneType"),
        ("MODEL: 5", "config.yaml"),
        ("MODEL: {MASK_ON: {a: 1}}", "MASK_ON"),
        ("VERSION: x", "config.yaml"),
        ("1: 2", "config.yaml"),
        ("SOLVER: {BASE_LR: 0.003}\nSOLVER: {MAX_ITER: 5}", "line 2: SOLVER is there twice"),
        ("SOLVER: {BASE_LR: }", "SOLVER.BASE_LR is empty"),
        ("SOLVER:\n  # BASE_LR: 1", "'NoneType'>) for config key: SOLVER "),
        ("INPUT: {MIN_SIZE_TRAIN: ~}", "INPUT.MIN_SIZE_TRAIN is empty"),
    ],
    ids=range(17),
)
def test_configs_are_refused_in_one_line(tmp_path, text, told):
    path = tmp_path / "config.yaml"
    (tmp_path / "other").mkdir()
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_config(str(path))
    assert told in str(error.value) and len(str(error.value)) < 600 + len(str(path))


def test_a_circle_of_two_configs_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: b.yaml")
    (tmp_path / "b.yaml").write_text("_BASE_: [a.yaml]")
    with pytest.raises(InputError, match="leads back to itself"):
        read_config(str(tmp_path / "a.yaml"))
