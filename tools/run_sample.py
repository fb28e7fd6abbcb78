#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""All steps on the embedded sample: annotation, labels, training, evaluation, report."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tabulate import tabulate

from wsis_d2.engine.jobs import Job, run_jobs
from wsis_d2.evaluation.results import fs_percent, merge_results_json
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.processes import usable_cores

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "Sample-Panoptic"
CLASSIFIER = ROOT / "configs" / "Sample-TagClassifier" / "tag_classifier_R_18.yaml"
EXAMPLES = """examples:
  python tools/run_sample.py --output output/demo
  python tools/run_sample.py --output output/demo_2 --seed 2      # another seed
  python tools/run_sample.py --output output/box --masks box      # filled boxes as labels
  python tools/run_sample.py --output output/smoke --quick        # a few steps of everything
"""
# Rows of the closing table: title, group of results.json, key.
ROWS = (
    ("IoU", "sem_seg", "mIoU"),
    ("AP^r_vol", "apr", "APr_vol"),
    ("AP^r_vol things", "apr", "APr_vol_th"),
    ("AP^r_vol stuff", "apr", "APr_vol_st"),
    ("PQ", "panoptic_seg", "PQ"),
    ("PQ things", "panoptic_seg", "PQ_th"),
    ("PQ stuff", "panoptic_seg", "PQ_st"),
)


def python(script: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


def train(config: Path, output: Path, *overrides: str | Path) -> list[str]:
    """A training job; --resume makes it go on from its last checkpoint."""
    return python(
        "tools/train_net.py", "--config-file", config, "--resume", "OUTPUT_DIR", output, *overrides
    )


def fastest_precision() -> list[str]:
    """Settings of the networks of dense convolutions: bfloat16 where the processor multiplies it.

    A semantic step takes half the time there. The detector's gains nothing.
    """
    # Versions of torch before 2.10 do not tell, and stay in float32.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return ["SOLVER.AMP.ENABLED", "True"] if capabilities.get("amx_bf16") else []


def sample_jobs(output: Path, masks: str, seed: int, quick: bool) -> list[Job]:
    """The chain as jobs; side by side where they do not need each other."""
    precision = fastest_precision()
    steps = {"SOLVER.MAX_ITER": 6, "TEST.EVAL_PERIOD": 0} if quick else {}
    common = ["SEED", str(seed)] + [str(v) for pair in steps.items() for v in pair]
    data = output / "datasets" / "wsis_sample"
    labels = output / "labels"
    size = ["--train", "12", "--val", "6"] if quick else []
    parts = {name: output / name / "model_final.pth" for name in ("detector", "classifier")}
    jobs = [
        Job("data", python("datasets/prepare_sample.py", "--output", data, *size), (), 0.3),
        Job(
            "classifier", train(CLASSIFIER, output / "classifier", *common), ("data",), 1.5,
        ),
        Job(
            "detector", train(CONFIGS / "detector.yaml", output / "detector", *common),
            ("data",), 4.0,
        ),
        Job(
            "labels",
            python(
                "tools/make_weak_labels.py", "all", "--dataset", "sample_train_weak",
                "--config-file", CLASSIFIER, "--classifier", parts["classifier"],
                "--output", labels, "--masks", masks,
            ),
            ("classifier",), 2.0,
        ),
        Job(
            "label_quality",
            python(
                "tools/evaluate_labels.py", "--store", labels,
                "--gt-json", data / "panoptic_train.json", "--gt-dir", data / "panoptic_train",
                "--output", output / "label_quality.json",
            ),
            ("labels",), 0.2,
        ),
    ]  # fmt: skip
    for name in ("weak", "full"):
        dataset = []
        if name == "weak":
            dataset = ["DATASETS.LABEL_STORES", f"[['sample_train_weak', '{labels}']]"]
        semantic = f"semantic_{name}"
        weights = [
            "MODEL.WSIS.DETECTOR_WEIGHTS", parts["detector"],
            "MODEL.WSIS.SEMANTIC_WEIGHTS", output / semantic / "model_final.pth",
        ]  # fmt: skip
        first = ("labels",) if name == "weak" else ("data",)
        recipe, config = (CONFIGS / f"{stage}_{name}.yaml" for stage in ("semantic", "instance"))
        jobs += [
            Job(
                semantic,
                train(recipe, output / semantic, *common, *precision, *dataset),
                first, 4.0,
            ),
            Job(
                name,
                train(config, output / name, *common, *dataset, *weights, "RUN_NAME", name),
                ("detector", semantic), 2.0,
            ),
            # The same networks, each pixel given to the best detection: what the CRF is worth.
            Job(
                f"{name}_without_crf",
                python(
                    "tools/train_net.py", "--config-file", output / name / "config.yaml",
                    "--eval-only", "OUTPUT_DIR", output / f"{name}_without_crf",
                    "MODEL.WEIGHTS", output / name / "model_final.pth",
                    "MODEL.INSTANCE_HEAD.NAME", "BoxMergeHead",
                    "RUN_NAME", f"{name}_without_crf", "RUN_VARIANT", "no_crf_head",
                ),
                (name,), 0.3,
            ),
        ]  # fmt: skip
    return jobs


def report_job(output: Path) -> Job:
    """The page with the pictures: predictions, and the labels that were trained from."""
    command = python(
        "tools/report.py", "run", "--run", f"weak={output / 'weak'}",
        "--run", f"full={output / 'full'}", "--dataset", "sample_val_full",
        "--store", output / "labels", "--label-dataset", "sample_train_weak",
        "--results", output / "results.json", "--limit", "30",
        "--title", "The embedded sample: weak and full supervision",
        "--output", output / "report.html",
    )  # fmt: skip
    return Job("report", command, (), 0.3)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--masks", default="agreement", help="agreement, grabcut, mcg or box")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--workers", type=int, default=0, help="parallel processes; 0: one per core"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few images and steps, results without meaning"
    )
    args = parser.parse_args(argv)
    output = args.output.resolve()
    workers = args.workers or min(usable_cores(), 4)
    print(f"all steps on the embedded sample, {workers} processes at once, into {args.output}")
    jobs = sample_jobs(output, args.masks, args.seed, args.quick)
    # One thread a process: side by side they are faster and steadier than two in one.
    environment = {"OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(output / "datasets")}
    run_jobs(jobs, output / "jobs", workers=workers, environment=environment)
    names = ("weak", "full", "weak_without_crf", "full_without_crf")
    results = merge_results_json(
        [output / name / "results.json" for name in names], output / "results.json"
    )
    print(format_table(results["runs"]))
    (output / "jobs" / "report.done").unlink(missing_ok=True)  # it is of all runs: made each time
    run_jobs([report_job(output)], output / "jobs", workers=1, environment=environment)
    print(f"results: {args.output / 'results.json'}\nreport:  {args.output / 'report.html'}")
    return 0


def format_table(runs: dict) -> str:
    """The closing table: weak and full supervision, with and without the CRF head, FS%."""
    header = ["percent", "weak", "full", "FS%", "weak, no CRF", "full, no CRF"]
    lines = []
    for title, task, key in ROWS:
        weak, full, *others = (
            runs[name][task].get(key)
            for name in ("weak", "full", "weak_without_crf", "full_without_crf")
        )
        lines.append([title, weak, full, fs_percent(weak, full), *others])
    return tabulate(lines, header, tablefmt="github", floatfmt=".1f", missingval="-")


if __name__ == "__main__":
    main_with_errors(main)
