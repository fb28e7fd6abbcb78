# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Iterative training: train, predict on the training set, clean, train on that (paper 3.4, 4.3).

One folder holds it all::

    OUTPUT_DIR/state.json             where the run is: round and stage; written last, atomically
    OUTPUT_DIR/rounds.json            of each round the quality of its labels, and IoU and PQ
    OUTPUT_DIR/rounds.png             the same, drawn (the paper's figure 6)
    OUTPUT_DIR/round_0/               the first round's training, as tools/train_net.py leaves it
    OUTPUT_DIR/round_0/config.yaml    what it trained with: tools/train_net.py can do the same
    OUTPUT_DIR/round_0/metadata.json  the classes of its network, in their order
    OUTPUT_DIR/round_0/labels/NAME/   the label store that its model made, for round 1

Rounds count from 0, as in the paper: round K trains on labels that K networks have refined. A round
has three stages: train, evaluate, labels. Each continues where it was killed: training
from its last checkpoint, labels after the last image. A stage that has ended is never run again.
All three run in as many processes as are asked for, on one machine or on several that see the
folder under one path; the first machine notes and reports.
"""

import contextlib
import functools
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from wsis_d2.checkpoint.parts import check_trained
from wsis_d2.checkpoint.weight_keys import only_weights
from wsis_d2.config_checks.runs import check_device, check_trainable
from wsis_d2.data.datasets import register_own_datasets
from wsis_d2.data.records import load_records
from wsis_d2.engine.launch import launch
from wsis_d2.engine.resume import data_identity
from wsis_d2.engine.setup import write_metadata
from wsis_d2.evaluation import build_evaluator
from wsis_d2.relabeling.earlier_labels import check_refinement
from wsis_d2.relabeling.identity import config_fingerprint
from wsis_d2.relabeling.mask_source import check_masks
from wsis_d2.relabeling.plot import format_rounds, plot_rounds
from wsis_d2.relabeling.prediction_model import prediction_config
from wsis_d2.relabeling.round_labels import first_stores
from wsis_d2.relabeling.round_stages import (
    evaluate_round,
    label_round,
    store_quality,
    train_round,
)
from wsis_d2.relabeling.run_state import (
    SCHEMA,
    STAGES,
    check_same,
    history_of,
    new_state,
    next_state,
    read_state,
    state_path,
    write_state,
)
from wsis_d2.structures.stages import stage_of
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import atomic_write, sha256_file
from wsis_d2.utils.json_io import read_json, write_json
from wsis_d2.utils.processes import only_writer
from wsis_d2.weak_labels.store import LabelStore

logger = logging.getLogger(__name__)


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
        self.first_stores = first_stores(cfg)
        self.names = list(self.first_stores)
        check_refinement(cfg, self.first_stores)
        check_masks(cfg, self.first_stores)
        tested = self._composed(detector=detector) if detector else cfg
        for name in cfg.DATASETS.TEST:
            load_records([name])
            build_evaluator(tested, name)
        identity = {
            name: LabelStore.open(path).recipe_hash for name, path in self.first_stores.items()
        }
        self.lineage = config_fingerprint(cfg, identity)
        data = data_identity(cfg, load_records([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))
        for name in cfg.DATASETS.TEST:  # records of a weak set tell nothing of its truth
            truth = MetadataCatalog.get(name).get("panoptic_json")
            data[name]["truth"] = sha256_file(truth) if truth and os.path.isfile(truth) else ""
        begun_with = (
            identity,
            data,
            sha256_file(PathManager.get_local_path(detector)) if detector else "",
        )
        if not self.is_main:
            self.state = next_state(self.folder, None)
            check_same(self.folder, self.state, cfg, *begun_with)
            return
        state = read_state(self.folder)
        if state is None:
            state = new_state(cfg, *begun_with)
        elif not resume:
            raise InputError(
                f"{state_path(self.folder)}: an unfinished run, at round {state['round']}, stage "
                f"{state['stage']}; add --resume to continue it, or name another OUTPUT_DIR"
            )
        else:
            check_same(self.folder, state, cfg, *begun_with)
        self.state = state

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
            write_state(self.folder, self.state)
            for number in range(self.state["round"] + 1):
                self._note_labels(number)
            self._report()
        while self.state["round"] < self.rounds:
            number, stage = self.state["round"], self.state["stage"]
            logger.info("round %d of 0 to %d: %s", number, self.rounds - 1, stage)
            getattr(self, f"_{stage}")(number)
            if not self.is_main:
                self.state = next_state(self.folder, (number, stage))
                continue
            self._report()
            position = STAGES.index(stage)
            if position + 1 < len(STAGES):
                self.state["stage"] = STAGES[position + 1]
            else:
                self.state.update(round=number + 1, stage=STAGES[0])
            write_state(self.folder, self.state)
        if not self.is_main:
            return self.state["history"]
        logger.info(
            "%d rounds are done: %s and %s\n%s",
            self.rounds,
            self.folder / "rounds.json",
            self.folder / "rounds.png",
            format_rounds(history_of(self.state)),
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
        cfg = self.round_config(number)
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        if self.is_main:
            write_metadata(cfg)  # what later stages begin with must tell its classes' order
        if number == 0 and self.cfg.ITERATIVE.FIRST_WEIGHTS:
            if not self.is_main:
                return
            with (
                PathManager.open(self.cfg.ITERATIVE.FIRST_WEIGHTS, "rb") as trained,
                atomic_write(self.round_folder(0) / "model_final.pth") as file,
            ):
                shutil.copyfileobj(trained, file)
            return
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
        """Measure a round's labels where their truth is known, for the report alone.

        What could not be measured is tried again when the run is continued.
        """
        known = self._entry(number).setdefault("labels", {})
        for name in self.names:
            if name not in known:
                quality = store_quality(name, self.label_store(number, name))
                if quality is not None:
                    known[name] = quality
        write_state(self.folder, self.state)

    def _entry(self, number: int) -> dict:
        return self.state["history"].setdefault(str(number), {})

    def _report(self) -> None:
        history = history_of(self.state)
        content = {"schema": SCHEMA, "datasets": self.names, "rounds": history}
        write_json(self.folder / "rounds.json", content, indent=1)
        plot_rounds(history, self.folder / "rounds.png")


def composes(cfg: CfgNode) -> bool:
    """Whether a round's semantics can be measured in PQ by joining them with a detector."""
    return stage_of(cfg).parts == ("semantic",) and bool(cfg.DATASETS.TEST)


def train_iterative(
    cfg: CfgNode, rounds: int, resume: bool = False, num_processes: int = 1, **machines: Any
) -> dict:
    """Run an iterative training; see :class:`IterativeRun`."""
    register_own_datasets(cfg)
    # This checks, and writes nothing.
    run = IterativeRun(cfg, rounds, resume, num_processes, **machines)
    main = machines.get("machine_rank", 0) == 0
    with only_writer(cfg.OUTPUT_DIR) if main else contextlib.nullcontext():
        return run.run()
