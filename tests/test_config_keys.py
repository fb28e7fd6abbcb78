# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""How many keys the project adds to Detectron2's, and that each is said once, with a comment."""

import inspect

import pytest
from detectron2.config import CfgNode, get_cfg

from wsis_d2 import config
from wsis_d2.config import add_wsis_config

# Detectron2's own nodes once more, for the semantic subnetwork: one choice each, not one a key.
COPIES = {
    "MODEL.SEMANTIC.BACKBONE": "MODEL.BACKBONE",
    "MODEL.SEMANTIC.RESNETS": "MODEL.RESNETS",
    "MODEL.SEMANTIC.FPN": "MODEL.FPN",
    "MODEL.SEMANTIC.TIMM": "MODEL.TIMM",
}


def keys_of(node, prefix=""):
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from keys_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.fixture(scope="module")
def all_keys():
    cfg = get_cfg()
    add_wsis_config(cfg)
    return set(keys_of(cfg))


def test_at_most_eighty_six_keys_are_added(all_keys):
    added = all_keys - set(keys_of(get_cfg()))
    copied = {key for key in added if key.startswith(tuple(f"{copy}." for copy in COPIES))}
    assert len(added - copied) + len(COPIES) <= 86


def test_copies_have_the_keys_of_what_they_copy(all_keys):
    for copy, source in COPIES.items():
        own, other = (
            {key.removeprefix(f"{node}.") for key in all_keys if key.startswith(f"{node}.")}
            for node in (copy, source)
        )
        assert own == other and own


def test_each_key_is_set_in_one_place_after_a_comment():
    lines = inspect.getsource(config).splitlines()
    places = [
        (line.split(" = ")[0].strip(), lines[i - 1].strip(), line)
        for i, line in enumerate(lines)
        if line.startswith("    cfg.") and " = " in line
    ]
    names = [name for name, _, _ in places]
    assert len(names) == len(set(names)) > 80
    section = ""
    for name, before, line in places:
        if "CN()" in line or ".clone()" in line:
            continue
        # A comment may speak of the few keys below it.
        section = before if before.startswith("#") else section
        assert before.startswith(("#", "cfg.")) and section, name
