#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Run an experiment of configs/experiments: labels, trainings and evaluations, seed by seed."""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
_PARTS = {"data": str, "datasets": dict, "runs": dict, "groups": dict}
_FIELDS = {"tool": str, "recipe": str, "evaluate": str, "arguments": list, "set": dict,
           "shared": bool, "minutes": int | float}  # fmt: skip
_PLACES = ("json", "images", "panoptic_json", "panoptic_dir")  # of a dataset, in the data's folder
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
        try:
            content = parse_yaml(self.file.read_text(encoding="utf-8"), self.file)
        except UnicodeDecodeError as error:
            raise InputError(f"{self.file}: is no text ({error.reason})") from None
        self._check_kinds("", content, _PARTS, {"datasets", "runs", *(() if data else ["data"])})
        self.runs: dict[str, dict[str, Any]] = content["runs"]
        self.groups: dict[str, list[str]] = content.get("groups", {})
        # Of its own: a training would go on from the few steps of a quick one.
        self.folder = output / (self.configs.name.lower() + ("_quick" if quick else ""))
        self.data = Path(data or content["data"])
        self.datasets = content["datasets"]
        self.seed = seed
        self.quick = quick
        self.jobs: dict[str, Job] = {}
        for name, fields in self.datasets.items():
            keys = fields if isinstance(fields, dict) else ()
            kinds = {key: str if key in _PLACES else object for key in keys}
            self._check_kinds(f"dataset {name!r}: ", fields, kinds)
        for run, fields in self.runs.items():
            self._check(run, fields)
        self._check_kinds("groups: ", self.groups, dict.fromkeys(self.groups, list))
        for name, runs in self.groups.items():
            unknown = [run for run in runs if run not in list(self.runs)]
            if unknown:
                raise InputError(
                    f"{self.file}: group {name!r}: {unknown[0]!r:.60} is no run, expected some of "
                    f"{list(self.runs)}"
                )

    def _check_kinds(
        self, where: str, found: Any, kinds: Mapping[str, Any], wanted: Iterable[str] = ()
    ) -> None:
        """Refuse what is no mapping of these keys to these kinds, or lacks a wanted one."""
        if not isinstance(found, dict):
            raise InputError(f"{self.file}: {where}is {found!r:.60}, expected keys and values")
        for key in [*found, *sorted(set(wanted) - set(found))]:
            kind = kinds.get(key) if isinstance(key, str) else None
            if kind is None:
                raise InputError(
                    f"{self.file}: {where}{key!r:.60} is no field, expected {list(kinds)}"
                )
            if not isinstance(found.get(key), kind):
                raise InputError(
                    f"{self.file}: {where}{key} is {found.get(key)!r:.60}, expected a "
                    f"{getattr(kind, '__name__', 'number')}"
                )

    def _check(self, run: str, fields: Mapping[str, Any]) -> None:
        if not isinstance(run, str) or not re.fullmatch(r"\w+", run) or run in ("data", "output"):
            raise InputError(
                f"{self.file}: run {run!r:.60}: expected a name of letters, digits and _, not data "
                "or output"
            )
        self._check_kinds(f"run {run!r}: ", fields, _FIELDS)
        where = f"{self.file}: run {run!r}"
        if ("tool" in fields) == ("evaluate" in fields):
            raise InputError(f"{where}: expected either 'tool' or 'evaluate'")
        if "tool" in fields:
            check_choice(f"{where}: tool", fields["tool"], TOOLS)
        if fields.get("tool") not in (None, "evaluate_labels") and "recipe" not in fields:
            raise InputError(f"{where}: recipe is missing, which {fields['tool']} needs")
        if "recipe" in fields and not (self.configs / fields["recipe"]).is_file():
            raise InputError(f"{where}: {self.configs / fields['recipe']}: no such recipe")
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
        return str(self.data / value) if key in _PLACES else value

    def add(self, run: str, *above: str) -> str:
        """Note the job of a run and of what it needs, once each; return the run's job name.

        Args:
            run: its name.
            above: runs that need it.
        """
        fields, path = self.runs[run], self.path(run)
        if run in above:
            raise InputError(
                f"{self.file}: run {run!r} needs itself, through {', '.join(above)}; its own "
                "folder is {output}"
            )
        if path.name in self.jobs:
            return path.name
        needs = [self.add(name, *above, run) for name in self._named(fields)]
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
