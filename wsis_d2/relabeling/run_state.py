# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Where an iterative run is, and what it was begun with: its ``state.json``."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode

from wsis_d2.engine.resume import plain_config, refuse_changes, refuse_other_data
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import atomic_write
from wsis_d2.utils.json_io import read_json

STAGES = ("train", "evaluate", "labels")
SCHEMA = 2  # in 1, rounds counted from 1
_POLL = 2.0  # seconds between looks at the first machine's state
_MOST_WAIT = 12 * 3600


def state_path(folder: Path) -> Path:
    """Return the file that tells where the run in a folder is."""
    return folder / "state.json"


def new_state(
    cfg: CfgNode, identity: Mapping[str, str], data: Mapping[str, Mapping], detector: str
) -> dict:
    """Return the state of a run that begins.

    Args:
        cfg: its config.
        identity: dataset to the recipe hash of its round-0 labels.
        data: :func:`wsis_d2.engine.resume.data_identity` of what round 0 trains on and rounds are
            measured on.
        detector: hash of the detector that rounds are measured with, "" without one.
    """
    return {
        "schema": SCHEMA,
        "round": 0,
        "stage": STAGES[0],
        "labels_of_round_0": dict(identity),
        "data": data,
        "detector": detector,
        "config": plain_config(cfg),
        "history": {},
    }


def read_state(folder: Path) -> dict | None:
    """Return the state of the run in a folder, None where there is none.

    Raises:
        InputError: the file is damaged, or of another version.
    """
    path = state_path(folder)
    try:
        if not path.exists():
            return None
        state = read_json(path)
        if state["schema"] != SCHEMA or state["stage"] not in STAGES:
            raise ValueError(f"schema {state['schema']}, stage {state['stage']}")
        state.setdefault("data", {})  # one of an older version knows of none
        kinds = {"round": int, "history": dict, "config": dict, "labels_of_round_0": dict,
                 "data": dict}  # fmt: skip
        for key, kind in kinds.items():
            if not isinstance(state[key], kind):
                raise ValueError(f"{key} is {state[key]!r:.60}")
        for own in state["config"]["DATASETS"]["OWN"]:
            if not isinstance(own, dict):
                raise ValueError(f"DATASETS.OWN has {own!r:.60}")
        for name, parts in state["data"].items():
            if not isinstance(parts, dict):
                raise ValueError(f"data of {name!r:.60} is {parts!r:.60}")
        for number, entry in state["history"].items():
            if not number.isdecimal() or not isinstance(entry, dict):
                raise ValueError(f"history {number!r:.60} is {entry!r:.60}")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: no state of an iterative run ({error}); name another OUTPUT_DIR"
        ) from None
    return state


def write_state(folder: Path, state: Mapping) -> None:
    """Note where a run is."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(state_path(folder)) as file:
        file.write(json.dumps(state, indent=1).encode())


def next_state(folder: Path, done: tuple[int, str] | None) -> dict:
    """Wait until the first machine has noted another stage than ``done``, which it reports.

    Raises:
        InputError: it has not for half a day.
    """
    began = time.monotonic()
    while True:
        state = read_state(folder)
        if state is not None and (state["round"], state["stage"]) != done:
            return state
        if time.monotonic() - began > _MOST_WAIT:
            raise InputError(
                f"{state_path(folder)}: has not changed for {_MOST_WAIT // 3600} hours; the "
                "first machine (--machine-rank 0) is gone: start all of them again, --resume"
            )
        time.sleep(_POLL)


def check_same(
    folder: Path,
    state: Mapping,
    cfg: CfgNode,
    identity: Mapping[str, str],
    data: Mapping[str, Mapping],
    detector: str,
) -> None:
    """Refuse to continue a run with another config, other data or labels, or another detector.

    Args:
        folder: of the run.
        state: its state; one of an older version knows of no data and no detector.
        cfg, identity, data, detector: as for :func:`new_state`, now.

    Raises:
        InputError: naming what differs.
    """
    known = state["data"]
    refuse_changes(state_path(folder), state["config"], plain_config(cfg), known)
    if state["labels_of_round_0"] != dict(identity):
        raise InputError(
            f"{state_path(folder)}: the run was begun with other labels of round 0; continue with "
            "those, or name another OUTPUT_DIR"
        )
    refuse_other_data(state_path(folder), known, data)
    if state.get("detector", detector) != detector:
        raise InputError(
            f"{state_path(folder)}: MODEL.WSIS.DETECTOR_WEIGHTS "
            f"{cfg.MODEL.WSIS.DETECTOR_WEIGHTS!r} had other content when the run was begun, so "
            "its rounds could not be compared; put that back, or name another OUTPUT_DIR"
        )


def history_of(state: Mapping) -> list[dict]:
    """Return the figures of each round, in order."""
    return sorted(
        ({"round": int(number), **entry} for number, entry in state["history"].items()),
        key=lambda entry: entry["round"],
    )
