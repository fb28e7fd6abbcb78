#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Run an experiment of configs/experiments: labels, trainings and evaluations, seed by seed."""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsis_d2.engine.jobs import Job, run_jobs
from wsis_d2.utils.cli import main_with_errors, positive
from wsis_d2.utils.errors import InputError, check_choice
from wsis_d2.utils.yaml_io import parse_yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "experiments"
EXAMPLES = """examples:
  # three seeds of weak and full supervision; stopped, the same command goes on
  tools/run_experiment.py CamVid --seeds 1 2 3 --runs weak full
  # with the photographs in another folder
  tools/run_experiment.py CamVid --data ~/camvid --runs weak full
  # the ablations, one seed
  tools/run_experiment.py CamVid --runs isolate
  # a few steps of everything, to see whether it runs
  tools/run_experiment.py CamVid --quick

configs/experiments/NAME/experiment.yaml lists the data and the runs
(configs/experiments/README.md). Each run leaves OUTPUT/NAME/RUN_seedS/results.json;
tools/make_tables.py averages over seeds.
"""
TOOLS = ("train_net", "train_iterative", "make_weak_labels", "evaluate_labels")
_FIELDS = {"tool", "recipe", "evaluate", "arguments", "set", "shared", "minutes"}
_NAME = re.compile(r"\{(\w+)\}")


class Experiment:
    """The jobs of one experiment and one seed.

    Args:
        name: folder in configs/experiments, or the path of one elsewhere.
        output: folder of all experiments' runs.
        seed: of every training.
        data: folder of the photographs and annotation; None is the experiment's own default.
        quick: a few steps of everything, in ``OUTPUT/NAME_quick``.

    Raises:
        InputError: no such experiment, or its file is not as expected.
    """

    def __init__(
        self,
        name: str,
        output: Path,
        seed: int,
        data: Path | None = None,
        quick: bool = False,
    ) -> None:
        self.configs = CONFIGS / name
        if not self.configs.is_dir():
            self.configs = Path(name).resolve()
        self.file = self.configs / "experiment.yaml"
        if not self.file.is_file():
            names = ", ".join(
                sorted(path.parent.name for path in CONFIGS.glob("*/experiment.yaml"))
            )
            raise InputError(f"{name}: no such experiment, expected one of {names}")
        content = parse_yaml(self.file.read_text(encoding="utf-8"), self.file)
        wanted = {"runs": dict, "datasets": dict, **({} if data else {"data": str})}
        for key, kind in wanted.items():
            found = content.get(key) if isinstance(content, dict) else None
            if not isinstance(found, kind):
                raise InputError(f"{self.file}: {key} is {found!r:.60}, expected a {kind.__name__}")
        self.runs: dict[str, dict[str, Any]] = content["runs"]
        self.groups: dict[str, list[str]] = content.get("groups", {})
        # Of its own: a training would go on from the few steps of a quick one.
        self.folder = output / (self.configs.name.lower() + ("_quick" if quick else ""))
        self.data = Path(data or content["data"])
        self.datasets = content["datasets"]
        self.seed = seed
        self.quick = quick
        self.jobs: dict[str, Job] = {}
        for section in ("datasets", "runs"):
            for name, fields in content[section].items():
                if not isinstance(fields, dict):
                    raise InputError(f"{self.file}: {section}: {name} has no fields")
        for run, fields in self.runs.items():
            self._check(run, fields)

    def _check(self, run: str, fields: Mapping[str, Any]) -> None:
        where = f"{self.file}: run {run!r}"
        unknown = sorted(set(fields) - _FIELDS)
        if unknown:
            raise InputError(f"{where}: {unknown[0]!r} is no field, expected {sorted(_FIELDS)}")
        if ("tool" in fields) == ("evaluate" in fields):
            raise InputError(f"{where}: expected either 'tool' or 'evaluate'")
        if "tool" in fields:
            check_choice(f"{where}: tool", fields["tool"], TOOLS)
        recipe = fields.get("recipe")
        if recipe and not (self.configs / recipe).is_file():
            raise InputError(f"{where}: {self.configs / recipe}: no such recipe")
        for name in self._named(fields):
            if name not in self.runs:
                raise InputError(
                    f"{where}: {{{name}}} is no run, expected one of {list(self.runs)}"
                )

    def _named(self, fields: Mapping[str, Any]) -> list[str]:
        """The runs that a run's fields name: it needs them."""
        text = [str(fields.get(key, "")) for key in ("arguments", "set")]
        found = [
            *_NAME.findall(" ".join(text)),
            *([fields["evaluate"]] if "evaluate" in fields else []),
        ]
        return [name for name in dict.fromkeys(found) if name not in ("data", "output")]

    def path(self, run: str) -> Path:
        """Folder of a run; one that is shared serves the runs of all seeds."""
        shared = self.runs[run].get("shared", False)
        return self.folder / (run if shared else f"{run}_seed{self.seed}")

    def _filled(self, value: Any, run: str) -> Any:
        """Put folders in the place of ``{run}``, ``{output}`` (this run's) and ``{data}``."""
        if isinstance(value, str):
            places = {"data": self.data, "output": self.path(run)}
            return _NAME.sub(lambda m: str(places.get(m[1]) or self.path(m[1])), value)
        if isinstance(value, Mapping):
            return {key: self._filled(item, run) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self._filled(item, run) for item in value]
        return value

    def _own_data(self) -> list[str]:
        """The experiment's datasets as an override of DATASETS.OWN."""
        own = [
            {"name": name, **{key: self._in_data(key, value) for key, value in fields.items()}}
            for name, fields in self.datasets.items()
        ]
        return ["DATASETS.OWN", repr(own)]

    def _in_data(self, key: str, value: Any) -> Any:
        is_place = key in ("json", "images", "panoptic_json", "panoptic_dir")
        return str(self.data / value) if is_place else value

    def add(self, run: str) -> str:
        """Note the job of a run and of what it needs, once each; return the run's job name."""
        fields, path = self.runs[run], self.path(run)
        if path.name in self.jobs:
            return path.name
        needs = [self.add(name) for name in self._named(fields)]
        command = list(self._command(run, fields))
        job = Job(
            path.name,
            [str(part) for part in command],
            needs,
            fields.get("minutes", 5.0),
            self._annotation(),
        )
        self.jobs[path.name] = job
        return path.name

    def _annotation(self) -> list[Path]:
        named: dict[Path, None] = {}
        for own in self.datasets.values():
            for key in ("json", "panoptic_json", "full_images"):
                if isinstance(own.get(key), str):  # full_images may be a share
                    named[Path(self._in_data(key, own[key]))] = None
        return list(named)

    def _command(self, run: str, fields: Mapping[str, Any]) -> Iterator[Any]:
        settings = self._filled(fields.get("set", {}), run)
        overrides = [str(part) for pair in settings.items() for part in pair]
        tool = fields.get("tool", "train_net")
        yield from (sys.executable, ROOT / "tools" / f"{tool}.py")
        yield from self._filled(fields.get("arguments", []), run)
        if tool == "evaluate_labels":
            return
        if "evaluate" in fields:
            base = fields["evaluate"]
            trained = self.path(base)
            yield from ("--eval-only", "--config-file", trained / "config.yaml")
            yield from ("MODEL.WEIGHTS", trained / "model_final.pth", "RUN_VARIANT",
                        run.removeprefix(f"{base}_"))  # fmt: skip
        else:
            yield from ("--config-file", self.configs / fields["recipe"])
            if tool.startswith("train"):
                yield "--resume"
            yield from self._own_data()
        if tool.startswith("train"):
            yield from ("OUTPUT_DIR", self.path(run), "RUN_NAME", run)
            if not fields.get("shared"):
                yield from ("SEED", self.seed)
            if self.quick and "evaluate" not in fields:
                yield from ("SOLVER.MAX_ITER", 3)
        yield from overrides

    def plan(self, names: Sequence[str] | None = None) -> dict[str, Job]:
        """The jobs of the named runs and groups, and of what they need, in an order that runs.

        Args:
            names: None is all runs.

        Raises:
            InputError: a name that is neither a run nor a group.
        """
        for name in names or self.runs:
            if name not in self.runs and name not in self.groups:
                known = ", ".join([*self.runs, *self.groups])
                raise InputError(f"--runs {name}: not in {self.file}, expected some of {known}")
            for run in self.groups.get(name, [name]):
                self.add(run)
        return self.jobs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="folder in configs/experiments, or another folder's path")
    parser.add_argument("--data", type=Path, help="folder of the data; default: the experiment's")
    parser.add_argument("--output", type=Path, default=Path("output/experiments"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--runs", nargs="+", help="runs or groups of experiment.yaml; default: all")
    parser.add_argument("--workers", type=positive, default=2, help="processes at once")
    parser.add_argument("--quick", action="store_true", help="a few steps, in OUTPUT/NAME_quick")
    args = parser.parse_args(argv)
    jobs: dict[str, Job] = {}
    for seed in args.seeds:
        experiment = Experiment(args.name, args.output, seed, args.data, args.quick)
        jobs |= experiment.plan(args.runs)
    run_jobs(
        list(jobs.values()),
        experiment.folder / "jobs",
        workers=args.workers,
        environment={"OMP_NUM_THREADS": "1"},
    )
    return 0


if __name__ == "__main__":
    main_with_errors(main)
