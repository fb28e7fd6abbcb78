#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Weak, full and mixed supervision on small sets of photographs: configs/experiments/README.md."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wsis_d2.engine.jobs import Job, run_jobs
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "experiments"
EXAMPLES = """examples:
  # street scenes, three seeds of weak and full supervision; stopped, the same command goes on
  python tools/run_experiment.py CamVid --seeds 1 2 3 --runs weak full
  # one seed of the mixed and of the isolating runs
  python tools/run_experiment.py CamVid --seeds 1 --runs mixed piecewise isolate labels
  python tools/run_experiment.py CamVid --seeds 1 --quick     # a few steps of everything

The data are own data at the places that configs/experiments/NAME/data.yaml names. Each run leaves
OUTPUT/NAME/RUN_seedS/results.json; tools/make_tables.py averages over seeds.
"""
#: Name of a run -> the recipe without which an experiment has no such run.
RUNS = {
    "weak": "semantic_weak.yaml",
    "full": "semantic_full.yaml",
    "mixed": "semantic_mixed.yaml",
    "round_0": "rounds.yaml",
    "round_1": "round_1.yaml",
    "round_2": "round_2.yaml",
    "round_4": "round_4.yaml",
    "piecewise": "semantic_full.yaml",
    "isolate": "semantic_full.yaml",
    "true_masks": "tag_segmenter.yaml",
    "labels": "labels.yaml",
}
ROUNDS = 4
#: Name of an isolating evaluation -> config overrides; each is made of the weak and the full run.
ISOLATING: dict[str, list[str]] = {
    "true_boxes": ["TEST.TRUE_PARTS", "['boxes']"],
    "true_semantics": ["TEST.TRUE_PARTS", "['semantics']"],
    "true_both": ["TEST.TRUE_PARTS", "['boxes', 'semantics']"],
    "no_crf_iterations": ["MODEL.INSTANCE_HEAD.ITERATIONS", "0"],
    "no_crf_head": ["MODEL.INSTANCE_HEAD.NAME", "BoxMergeHead"],
    "ranked_by_mean_confidence": ["TEST.SCORE_MODE", "mean_confidence"],
    "ranked_by_detection": ["TEST.SCORE_MODE", "detection"],
    "ranked_by_oracle": ["TEST.SCORE_MODE", "oracle"],
}


class Experiment:
    """The jobs of one set of photographs and one seed."""

    def __init__(self, name: str, output: Path, seed: int, quick: bool = False) -> None:
        """
        Args:
            name: folder in configs/experiments.
            output: folder of all sets' runs.
            seed: of every training.
            quick: a few steps of everything.
        """
        self.configs = CONFIGS / name
        self.train_set = f"{name.lower()}_train"
        self.folder = output / name.lower()
        self.data = Path("output/experiments/data") / name.lower()  # as data.yaml names it
        self.seed = seed
        self.steps = ["SOLVER.MAX_ITER", "3"] if quick else []
        self.has_tags = self.has("tag_segmenter.yaml")
        self.jobs: dict[str, Job] = {}

    def has(self, recipe: str) -> bool:
        return (self.configs / recipe).is_file()

    def path(self, run: str) -> Path:
        """Folder of a run."""
        # Labels are made once, from one segmenter's cues, and serve the networks of all seeds.
        shared = run.startswith(("labels", "tag_segmenter"))
        return self.folder / (run if shared else f"{run}_seed{self.seed}")

    def add(self, run: str, command: Sequence, needs: Sequence[str] = (), minutes=5.0) -> str:
        """Note a job once; return its name."""
        name = self.path(run).name
        if name not in self.jobs:
            self.jobs[name] = Job(name, [str(part) for part in command], needs, minutes)
        return name

    def train(self, run: str, recipe: str, needs=(), options=(), tool="train_net", minutes=8.0,
              rounds=ROUNDS):  # fmt: skip
        """Note a training by a recipe; it resumes from its last checkpoint."""
        if not self.has(recipe):
            raise InputError(
                f"{self.configs / recipe}: no such recipe, which {run} needs; name other --runs"
            )
        command = [sys.executable, ROOT / "tools" / f"{tool}.py", "--config-file",
                   self.configs / recipe, "--resume"]  # fmt: skip
        if tool == "train_iterative":
            command += ["--rounds", rounds]
        seed = [] if run == "tag_segmenter" else ["SEED", str(self.seed)]
        command += ["OUTPUT_DIR", self.path(run), *seed, *self.steps, *options]
        return self.add(run, command, needs, minutes)

    def detector(self) -> str:
        return self.train("detector", "detector.yaml")

    def labels(self) -> str:
        """Round 0's label store, from boxes and tags alone."""
        tool = [sys.executable, ROOT / "tools" / "make_weak_labels.py"]
        if not self.has_tags:
            command = [*tool, "boxes", "--config-file", self.configs / "labels.yaml"]
            needs = []
        else:
            needs = [self.train("tag_segmenter", "tag_segmenter.yaml")]
            command = [*tool, "all", "--config-file", self.configs / "labels.yaml",
                       "--classifier", self.path("tag_segmenter") / "model_final.pth"]  # fmt: skip
        command += ["--dataset", self.train_set, "--output", self.path("labels"), "--workers", "1"]
        return self.add("labels", command, needs, 2.0)

    def stores(self, folder: Path, suffix: str = "") -> list[str]:
        return ["DATASETS.LABEL_STORES", f"[['{self.train_set}{suffix}', '{folder}']]"]

    def weak_semantics(self) -> tuple[str, Path, Path]:
        """Job, checkpoint and label store of the weakly supervised semantic subnetwork.

        In rounds where the experiment has a recipe for them, else on round 0's labels.
        """
        labels = self.labels()
        first = self.stores(self.path("labels"))
        if not self.has("rounds.yaml"):
            job = self.train("semantic_weak", "semantic_weak.yaml", [labels], first)
            return job, self.path("semantic_weak") / "model_final.pth", self.path("labels")
        detector = self.detector()
        first += ["MODEL.WSIS.DETECTOR_WEIGHTS", self.path("detector") / "model_final.pth"]
        job = self.train("rounds", "rounds.yaml", [labels, detector], first, "train_iterative")
        last = self.path("rounds") / f"round_{ROUNDS - 1}" / "model_final.pth"
        store = self.path("rounds") / f"round_{ROUNDS - 2}" / "labels" / self.train_set
        return job, last, store

    def panoptic(self, run: str, recipe: str, semantics: str, weights: Path, options=()) -> str:
        """The instance stage on a semantic subnetwork and this seed's detector."""
        parts = ["MODEL.WSIS.DETECTOR_WEIGHTS", self.path("detector") / "model_final.pth",
                 "MODEL.WSIS.SEMANTIC_WEIGHTS", weights, "RUN_NAME", run]  # fmt: skip
        needs = [self.detector(), semantics]
        return self.train(run, recipe, needs, [*parts, *options], minutes=2.0)

    def weak(self, run: str = "weak", options=()) -> str:
        job, weights, store = self.weak_semantics()
        return self.panoptic(
            run, "panoptic_weak.yaml", job, weights, [*self.stores(store), *options]
        )

    def full(self, run: str = "full", options=()) -> str:
        job = self.train("semantic_full", "semantic_full.yaml")
        weights = self.path("semantic_full") / "model_final.pth"
        return self.panoptic(run, "panoptic_full.yaml", job, weights, options)

    def mixed(self) -> str:
        """Half of the images with masks, the last round's labels for the others."""
        weak, _, store = self.weak_semantics()
        stores = self.stores(store, "_mixed")
        job = self.train("semantic_mixed", "semantic_mixed.yaml", [weak], stores)
        weights = self.path("semantic_mixed") / "model_final.pth"
        return self.panoptic("mixed", "panoptic_mixed.yaml", job, weights, stores)

    def round_0(self) -> str:
        """As long a training as all rounds together, on round 0's labels."""
        return self._from_store("weak_round_0", self.labels(), self.path("labels"))

    def round_1(self) -> str:
        """One more round after the weak run: on the labels of its network, from its weights."""
        return self._more_rounds(1)

    def round_2(self) -> str:
        """Two more rounds after the weak run."""
        return self._more_rounds(2)

    def round_4(self) -> str:
        """Four more rounds after the weak run."""
        return self._more_rounds(4)

    def _more_rounds(self, count: int) -> str:
        weak, weights, _ = self.weak_semantics()
        options = ["ITERATIVE.FIRST_WEIGHTS", weights, *self.stores(self.path("labels")),
                   "MODEL.WSIS.DETECTOR_WEIGHTS",
                   self.path("detector") / "model_final.pth"]  # fmt: skip
        needs = [weak, self.detector()]
        run = f"round_{count}"
        job = self.train(run, f"{run}.yaml", needs, options, "train_iterative", rounds=count + 1)
        labels = self.path(run) / f"round_{count - 1}" / "labels" / self.train_set
        last = self.path(run) / f"round_{count}" / "model_final.pth"
        return self.panoptic(f"weak_{run}", "panoptic_weak.yaml", job, last, self.stores(labels))

    def true_masks(self) -> str:
        """Round 0 again with the true masks of the boxes, and the same cues."""
        tool = [sys.executable, ROOT / "tools" / "make_weak_labels.py"]
        common = ["--config-file", self.configs / "labels.yaml", "--dataset", self.train_set,
                  "--workers", "1"]  # fmt: skip
        masks, store = self.path("labels_of_true_masks_boxes"), self.path("labels_of_true_masks")
        command = [*tool, "boxes", *common, "--masks", "mcg", "--output", masks,
                   "WEAK_LABELS.PROPOSALS.NAME", "coco_json",
                   "WEAK_LABELS.PROPOSALS.PATH", self.data / "true_masks_train.json"]  # fmt: skip
        boxes = self.add(masks.name, command, [self.labels()], 0.5)
        command = [*tool, "merge", *common, "--boxes", masks, "--output", store,
                   "--tags", self.path("labels") / "parts" / "tags"]  # fmt: skip
        merged = self.add(store.name, command, [boxes], 0.5)
        return self._from_store("weak_true_masks", merged, store)

    def _from_store(self, run: str, job: str, store: Path) -> str:
        """A semantic training as long as all rounds together on one store, and what follows."""
        stores = self.stores(store)
        semantic = f"semantic_{run.removeprefix('weak_')}"
        job = self.train(semantic, "semantic_weak.yaml", [job], stores)
        weights = self.path(semantic) / "model_final.pth"
        return self.panoptic(run, "panoptic_weak.yaml", job, weights, stores)

    def piecewise(self) -> None:
        options = ["MODEL.WSIS.STAGE", "instance_piecewise", "RUN_VARIANT", "piecewise"]
        self.weak("weak_piecewise", options)
        self.full("full_piecewise", options)

    def isolate(self) -> None:
        """The trained models evaluated again with one part replaced."""
        for base in (self.weak(), self.full()):
            run = base.removesuffix(f"_seed{self.seed}")
            for variant, options in ISOLATING.items():
                name = f"{run}_{variant}"
                command = [
                    sys.executable, ROOT / "tools" / "train_net.py", "--eval-only",
                    "--config-file", self.path(run) / "config.yaml", "OUTPUT_DIR", self.path(name),
                    "MODEL.WEIGHTS", self.path(run) / "model_final.pth", "RUN_NAME", name,
                    "RUN_VARIANT", variant, *options,
                ]  # fmt: skip
                self.add(name, command, [base], 0.3)

    def label_baselines(self) -> None:
        """Quality of round 0's labels, and of masks by simpler means, against the truth."""
        own = self.labels()
        for masks in ("box", "grabcut", "mcg", "agreement"):
            run = f"labels_{masks}"
            command = [
                sys.executable, ROOT / "tools" / "make_weak_labels.py", "boxes", "--masks", masks,
                "--config-file", self.configs / "labels.yaml", "--dataset", self.train_set,
                "--output", self.path(run), "--workers", "1", "WEAK_LABELS.FALLBACK", "none",
                "WEAK_LABELS.MIN_AGREEMENT", "0.0",
            ]  # fmt: skip
            self._quality(run, self.add(run, command, (), 1.0))
        self._quality("labels", own)

    def _quality(self, run: str, job: str) -> None:
        command = [
            sys.executable, ROOT / "tools" / "evaluate_labels.py", "--store", self.path(run),
            "--gt-json", self.data / "panoptic_train.json",
            "--gt-dir", self.data / "panoptic_train",
            "--output", self.path(run) / "quality.json",
        ]  # fmt: skip
        self.add(f"{run}_quality", command, [job], 0.5)

    def plan(self, runs: Sequence[str] | None = None) -> dict[str, Job]:
        """The jobs of the named runs, and of what they need, by name in an order that runs.

        Args:
            runs: None is all that the experiment has recipes for.

        Raises:
            InputError: it has none for a run that is named.
        """
        for run, recipe in RUNS.items():
            if run in (runs or ()) and not self.has(recipe):
                raise InputError(
                    f"{self.configs / recipe}: no such recipe, which the run {run!r} needs; "
                    "name other --runs"
                )
            if run in runs if runs else self.has(recipe):
                (self.label_baselines if run == "labels" else getattr(self, run))()
        return self.jobs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="folder in configs/experiments")
    parser.add_argument("--output", type=Path, default=Path("output/experiments"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), help="default: all")
    parser.add_argument("--workers", type=int, default=2, help="processes at once")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    args = parser.parse_args(argv)
    if not (CONFIGS / args.name / "data.yaml").is_file():
        names = sorted(path.parent.name for path in CONFIGS.glob("*/data.yaml"))
        raise InputError(f"{args.name}: no such experiment, expected one of {', '.join(names)}")
    jobs: dict[str, Job] = {}
    for seed in args.seeds:
        jobs |= Experiment(args.name, args.output, seed, args.quick).plan(args.runs)
    environment = {"OMP_NUM_THREADS": "1"}
    run_jobs(list(jobs.values()), args.output / args.name.lower() / "jobs", workers=args.workers,
             environment=environment)  # fmt: skip
    return 0


if __name__ == "__main__":
    main_with_errors(main)
