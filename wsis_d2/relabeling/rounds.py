# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Iterative training: train, predict on the training set, clean, train on that (paper 3.4, 4.3).

One folder holds it all::

    OUTPUT_DIR/state.json             where the run is: round and stage; written last, atomically
    OUTPUT_DIR/rounds.json            of each round the quality of its labels, and IoU and PQ
    OUTPUT_DIR/rounds.png             the same, drawn (the paper's figure 6)
    OUTPUT_DIR/round_0/               the first round's training, as tools/train_net.py leaves it
    OUTPUT_DIR/round_0/config.yaml    what it trained with: tools/train_net.py can do the same
    OUTPUT_DIR/round_0/labels/NAME/   the label store that its model made, for round 1

Rounds count from 0, as in the paper: round K trains on labels that K networks have refined. A round
has three stages: train, evaluate, labels. Each continues where it was killed: training
from its last checkpoint, labels after the last image. A stage that has ended is never run again.
All three run in as many processes as are asked for, on one machine or on several that see the
folder under one path; the first machine notes and reports.
"""

import contextlib
import functools
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from wsis_d2.checkpoint.parts import check_trained, load_for_evaluation, only_weights
from wsis_d2.config_checks import check_device, check_trainable
from wsis_d2.data.datasets import register_own_datasets
from wsis_d2.engine.launch import launch
from wsis_d2.engine.resume import plain_config, refuse_changes
from wsis_d2.engine.run_classes import run_classes
from wsis_d2.engine.trainer import WSISTrainer
from wsis_d2.modeling.build import build_model
from wsis_d2.relabeling.earlier_labels import check_refinement
from wsis_d2.relabeling.identity import config_fingerprint
from wsis_d2.relabeling.plot import format_rounds, plot_rounds
from wsis_d2.relabeling.prediction_model import prediction_config
from wsis_d2.relabeling.round_labels import relabel, weak_datasets
from wsis_d2.structures.stages import stage_of
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import atomic_write
from wsis_d2.utils.json_io import read_json
from wsis_d2.utils.processes import only_writer
from wsis_d2.weak_labels.store import LabelStore

logger = logging.getLogger(__name__)

_POLL = 2.0  # seconds between looks at the first machine's state
_MOST_WAIT = 12 * 3600

STAGES = ("train", "evaluate", "labels")
SCHEMA = 2  # in 1, rounds counted from 1


class IterativeRun:
    """One iterative training, which may be a continuation."""

    def __init__(
        self,
        cfg: CfgNode,
        rounds: int,
        resume: bool = False,
        num_processes: int = 1,
        *,
        num_machines: int = 1,
        machine_rank: int = 0,
        dist_url: str = "auto",
    ) -> None:
        """
        Args:
            cfg: a frozen config of a stage with semantics; ``DATASETS.TRAIN`` has weak sets with
                label stores, the round-0 labels. ``OUTPUT_DIR`` is the run's folder.
            rounds: number of rounds, at least 1. A finished run may be given more.
            resume: continue what is in the folder.
            num_processes: that train, evaluate and label on each machine: GPUs, or processes where
                there is none. A run continued with another number gives other labels, as training
                sums in another order.
            num_machines, machine_rank, dist_url: as for :func:`wsis_d2.engine.launch.launch`.

        Raises:
            InputError: the folder holds a run and ``resume`` is off, or one of another config.
        """
        if rounds < 1:
            raise InputError(f"--rounds {rounds}: expected at least 1")
        self.cfg = cfg
        # What is unfit must not show after hours of training.
        check_trainable(cfg)
        check_device(cfg)
        prediction_config(cfg)
        if cfg.TEST.EXPECTED_RESULTS:
            raise InputError(
                "TEST.EXPECTED_RESULTS: rounds have results of their own; check a round's with "
                "tools/train_net.py --eval-only"
            )
        detector = cfg.MODEL.WSIS.DETECTOR_WEIGHTS if composes(cfg) else ""
        if detector:
            check_trained(
                self._composed(detector=detector),
                detector,
                key="MODEL.WSIS.DETECTOR_WEIGHTS",
                part="detector",
                hint="train the detector with tools/train_net.py --config-file DETECTOR.yaml, or "
                "set '' to measure IoU alone",
            )
        first = cfg.ITERATIVE.FIRST_WEIGHTS
        if first:
            check_trained(
                cfg,
                first,
                key="ITERATIVE.FIRST_WEIGHTS",
                hint="train on round 0's labels with tools/train_net.py and the same keys, or set "
                "'' to train the first round here",
            )
        if num_processes * num_machines > 1 and cfg.ITERATIVE.WORKERS > 1:
            raise InputError(
                f"ITERATIVE.WORKERS is {cfg.ITERATIVE.WORKERS} with {num_processes * num_machines} "
                "processes (--num-gpus), each of which labels its share: set it to 1"
            )
        self.rounds = rounds
        self.launch = functools.partial(
            launch,
            num_processes=num_processes,
            num_machines=num_machines,
            machine_rank=machine_rank,
            dist_url=dist_url,
        )
        self.is_main = machine_rank == 0
        self.folder = Path(cfg.OUTPUT_DIR)
        self.names = weak_datasets(cfg)
        self.first_stores = {
            name: Path(MetadataCatalog.get(name).label_store) for name in self.names
        }
        check_refinement(cfg, self.first_stores)
        identity = {
            name: LabelStore.open(path).recipe_hash for name, path in self.first_stores.items()
        }
        self.lineage = config_fingerprint(cfg, identity)
        if not self.is_main:
            self.state = self._next_state(None)
            self._check_same(self.state, identity)
            return
        state = self._read_state()
        if state is None:
            state = {
                "schema": SCHEMA,
                "round": 0,
                "stage": STAGES[0],
                "labels_of_round_0": identity,
                "config": plain_config(cfg),
                "history": {},
            }
        elif not resume:
            raise InputError(
                f"{self._state_path}: an unfinished run, at round {state['round']}, stage "
                f"{state['stage']}; add --resume to continue it, or name another OUTPUT_DIR"
            )
        else:
            self._check_same(state, identity)
        self.state = state
        self._write_state()

    @property
    def _state_path(self) -> Path:
        return self.folder / "state.json"

    def round_folder(self, number: int) -> Path:
        """Folder of a round, from 0."""
        return self.folder / f"round_{number}"

    def label_store(self, number: int, name: str) -> Path:
        """The labels of a dataset that a round trains on, made by the round before."""
        if number == 0:
            return self.first_stores[name]
        return self.round_folder(number - 1) / "labels" / name

    def run(self) -> dict:
        """Run to the last stage of the last round; return the history that rounds.json holds."""
        if self.is_main:
            self._note_labels(0)
            self._report()
        while self.state["round"] < self.rounds:
            number, stage = self.state["round"], self.state["stage"]
            logger.info("round %d of 0 to %d: %s", number, self.rounds - 1, stage)
            getattr(self, f"_{stage}")(number)
            if not self.is_main:
                self.state = self._next_state((number, stage))
                continue
            self._report()
            position = STAGES.index(stage)
            if position + 1 < len(STAGES):
                self.state["stage"] = STAGES[position + 1]
            else:
                self.state.update(round=number + 1, stage=STAGES[0])
            self._write_state()
        if not self.is_main:
            return self.state["history"]
        logger.info(
            "%d rounds are done: %s and %s\n%s",
            self.rounds,
            self.folder / "rounds.json",
            self.folder / "rounds.png",
            format_rounds(self._history()),
        )
        return self.state["history"]

    def round_config(self, number: int) -> CfgNode:
        """Return the config that a round trains with, its labels and its weights named."""
        cfg = self.cfg.clone()
        if number > 0:
            cfg = only_weights(cfg, self.round_folder(number - 1) / "model_final.pth")
        cfg.defrost()
        cfg.OUTPUT_DIR = str(self.round_folder(number))
        cfg.DATASETS.TEST = ()  # evaluation is a stage of its own
        stores = dict(tuple(entry) for entry in cfg.DATASETS.LABEL_STORES)
        stores |= {name: str(self.label_store(number, name)) for name in self.names}
        cfg.DATASETS.LABEL_STORES = [list(entry) for entry in stores.items()]
        cfg.freeze()
        return cfg

    def _train(self, number: int) -> None:
        if number == 0 and self.cfg.ITERATIVE.FIRST_WEIGHTS:
            if not self.is_main:
                return
            self.round_folder(0).mkdir(parents=True, exist_ok=True)
            with (
                PathManager.open(self.cfg.ITERATIVE.FIRST_WEIGHTS, "rb") as trained,
                atomic_write(self.round_folder(0) / "model_final.pth") as file,
            ):
                shutil.copyfileobj(trained, file)
            return
        cfg = self.round_config(number)
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        if self.is_main:
            with atomic_write(Path(cfg.OUTPUT_DIR) / "config.yaml") as file:
                file.write(cfg.dump().encode())
        self.launch(train_round, args=(cfg,))

    def _evaluate(self, number: int) -> None:
        """Measure the round's model on DATASETS.TEST, with the instance head where that can be."""
        if not self.cfg.DATASETS.TEST:
            return
        weights = self.round_folder(number) / "model_final.pth"
        detector = self.cfg.MODEL.WSIS.DETECTOR_WEIGHTS if composes(self.cfg) else ""
        if detector:
            # Semantics of this round, the given detector, the CRF's weights as they start.
            cfg = self._composed(detector=detector, semantic=weights)
        else:
            cfg = only_weights(self.cfg, weights)
        cfg.defrost()
        cfg.OUTPUT_DIR = str(self.round_folder(number))
        cfg.RUN_NAME = f"round_{number}"
        cfg.freeze()
        found = self.round_folder(number) / "evaluation.json"
        self.launch(evaluate_round, args=(cfg, found))
        if self.is_main:
            self._entry(number).update(read_json(found))
            found.unlink()

    def _composed(self, **parts: str | Path) -> CfgNode:
        """The config that joins a round's semantics with a detector."""
        cfg = only_weights(self.cfg, **parts)
        cfg.defrost()
        cfg.MODEL.WSIS.STAGE = "instance_piecewise"
        cfg.freeze()
        return cfg

    def _labels(self, number: int) -> None:
        jobs = [
            {
                "name": name,
                "output": self.label_store(number + 1, name),
                "round_number": number + 1,
                "first_store": self.first_stores[name],
                "last_store": self.label_store(number, name),
                "lineage": self.lineage,
                "weights": self.round_folder(number) / "model_final.pth",
            }
            for name in self.names
        ]
        self.launch(label_round, args=(self.cfg, jobs))
        if self.is_main:
            self._note_labels(number + 1)

    def _note_labels(self, number: int) -> None:
        """Measure a round's labels where their truth is known, for the report alone."""
        entry = self._entry(number)
        if "labels" in entry:
            return
        entry["labels"] = {}
        for name in self.names:
            quality = store_quality(name, self.label_store(number, name))
            if quality is not None:
                entry["labels"][name] = quality
        self._write_state()

    def _entry(self, number: int) -> dict:
        return self.state["history"].setdefault(str(number), {})

    def _history(self) -> list[dict]:
        """The figures of each round, in order."""
        return sorted(
            ({"round": int(number), **entry} for number, entry in self.state["history"].items()),
            key=lambda entry: entry["round"],
        )

    def _report(self) -> None:
        history = self._history()
        content = {"schema": SCHEMA, "datasets": self.names, "rounds": history}
        with atomic_write(self.folder / "rounds.json") as file:
            file.write(json.dumps(content, indent=1).encode())
        plot_rounds(history, self.folder / "rounds.png")

    def _read_state(self) -> dict | None:
        try:
            if not self._state_path.exists():
                return None
            state = read_json(self._state_path)
            if state["schema"] != SCHEMA or state["stage"] not in STAGES:
                raise ValueError(f"schema {state['schema']}, stage {state['stage']}")
            kinds = {"round": int, "history": dict, "config": dict, "labels_of_round_0": dict}
            for key, kind in kinds.items():
                if not isinstance(state[key], kind):
                    raise ValueError(f"{key} is {state[key]!r:.60}")
            for number, entry in state["history"].items():
                if not number.isdecimal() or not isinstance(entry, dict):
                    raise ValueError(f"history {number!r:.60} is {entry!r:.60}")
        except InputError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self._state_path}: no state of an iterative run ({error}); name another "
                "OUTPUT_DIR"
            ) from None
        return state

    def _next_state(self, done: tuple[int, str] | None) -> dict:
        """Wait until the first machine has noted another stage than ``done``, which it reports."""
        began = time.monotonic()
        while True:
            state = self._read_state()
            if state is not None and (state["round"], state["stage"]) != done:
                return state
            if time.monotonic() - began > _MOST_WAIT:
                raise InputError(
                    f"{self._state_path}: has not changed for {_MOST_WAIT // 3600} hours; the "
                    "first machine (--machine-rank 0) is gone: start all of them again, --resume"
                )
            time.sleep(_POLL)

    def _write_state(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._state_path) as file:
            file.write(json.dumps(self.state, indent=1).encode())

    def _check_same(self, state: Mapping, identity: Mapping) -> None:
        refuse_changes(self._state_path, state["config"], plain_config(self.cfg))
        if state["labels_of_round_0"] != dict(identity):
            raise InputError(
                f"{self._state_path}: the run was begun with other labels of round 0; continue "
                "with those, or name another OUTPUT_DIR"
            )


def train_round(cfg: CfgNode) -> None:
    """Train one round, or what is left of it; what each process does.

    Args:
        cfg: of the round.
    """
    register_own_datasets(cfg)
    run_classes(cfg)
    trainer = WSISTrainer(cfg)
    # The last round's weights and labels lie below a folder that may have been moved; labels are
    # known by their recipe.
    trainer.identity["config"]["MODEL"].pop("WEIGHTS")
    trainer.identity["config"]["DATASETS"].pop("LABEL_STORES")
    trainer.resume_or_load(resume=True)
    trainer.train()


def evaluate_round(cfg: CfgNode, output: Path) -> None:
    """Evaluate a round's network; what each process does.

    Args:
        cfg: of the evaluation.
        output: file that the main process writes the figures of the first set to.
    """
    register_own_datasets(cfg)
    run_classes(cfg)
    model = build_model(cfg)
    load_for_evaluation(cfg, model)
    results = WSISTrainer.test(cfg, model)
    if comm.is_main_process():
        if len(cfg.DATASETS.TEST) > 1:
            results = results[cfg.DATASETS.TEST[0]]
        numbers = {task: _numbers(values) for task, values in results.items() if task != "bbox"}
        with atomic_write(output) as file:
            file.write(json.dumps(numbers).encode())


def label_round(cfg: CfgNode, jobs: Sequence[Mapping]) -> None:
    """Label the weak sets anew; what each process does: its share of each.

    Args:
        cfg: of the run.
        jobs: arguments of :func:`relabel` for each set.
    """
    register_own_datasets(cfg)
    run_classes(cfg)
    for job in jobs:
        relabel(cfg, **job)


def composes(cfg: CfgNode) -> bool:
    """Whether a round's semantics can be measured in PQ by joining them with a detector."""
    return stage_of(cfg).parts == ("semantic",) and bool(cfg.DATASETS.TEST)


def store_quality(name: str, store: Path) -> dict | None:
    """Compare a store with the truth of its dataset, where that is registered and there.

    Args:
        name: the dataset; its metadata tells ``panoptic_json`` and ``panoptic_root``.
        store: a label store.

    Returns:
        Summary figures, or None without truth.
    """
    metadata = MetadataCatalog.get(name)
    truth, folder = metadata.get("panoptic_json"), metadata.get("panoptic_root")
    if not truth or not folder or not os.path.isfile(truth):
        return None
    from wsis_d2.evaluation.label_quality import evaluate_store

    try:
        return _numbers(evaluate_store(store, truth, folder)["summary"])
    except (InputError, OSError) as error:
        logger.warning("no label quality of %s: %s", store, error)
        return None


def train_iterative(
    cfg: CfgNode, rounds: int, resume: bool = False, num_processes: int = 1, **machines: Any
) -> dict:
    """Run an iterative training; see :class:`IterativeRun`."""
    register_own_datasets(cfg)
    run = IterativeRun(
        cfg, rounds, resume, num_processes, **machines
    )  # which checks, writes nothing
    main = machines.get("machine_rank", 0) == 0
    with only_writer(cfg.OUTPUT_DIR) if main else contextlib.nullcontext():
        return run.run()


def _numbers(values: Mapping) -> dict:
    """Keep the finite numbers of a result."""
    kept = {}
    for key, value in values.items():
        if isinstance(value, (int, float)) and value == value and abs(value) != float("inf"):
            kept[key] = round(float(value), 4)
    return kept
