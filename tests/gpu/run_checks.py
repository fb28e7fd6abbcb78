# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Verify the CUDA operators on a GPU, then measure; see README.md beside this file.

python tests/gpu/run_checks.py --output output/gpu           # a GPU: at most eight minutes
python tests/gpu/run_checks.py --output output/gpu --dry-run [--host-kernels LIB.so]
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]
# Phase and the seconds it may take, in the order of their worth. A phase is a process: a fault of
# CUDA spoils every later call of its own.
PHASES = {
    "environment": 40,
    "operators": 150,
    "sanitizer": 130,
    "benchmark": 80,
    "step": 80,
    "training": 80,
}
WHOLE = 470.0  # seconds
SANITIZER_LIMIT = 40.0  # of each tool; three fit into the phase
PALETTE_CLASSES = 20


class Report:
    """Rows (what, outcome, note); a failed check is a row, not the end.

    Written with every row, so that a phase which is ended keeps those it has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[tuple[str, str, str]] = []

    def add(self, name: str, outcome: str, note: str = "") -> None:
        self.rows.append((name, outcome, " ".join(str(note).split())[:400]))
        self.path.write_text(json.dumps(self.rows))
        print(f"{outcome:5} {name}: {note}", flush=True)

    def check(self, name: str, function: Callable[[], str | None]) -> None:
        start = time.perf_counter()
        try:
            note = function() or ""
        except Exception as error:
            traceback.print_exc()
            self.add(name, "FAIL", f"{type(error).__name__}: {error}")
        else:
            self.add(name, "ok", f"{note} [{time.perf_counter() - start:.1f} s]")


def run_limited(command: list[str], log: Path, limit: float | None, **options: Any) -> int | None:
    """The command's status, or None where it took too long. What it started ends with it."""
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **options
        )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment(report: Report, args: argparse.Namespace) -> None:
    from wsis_d2.layers._extension import build_info, extension_error

    def machine():
        name = "no GPU" if args.dry_run else torch.cuda.get_device_name()
        return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version}"

    def operators():
        if extension_error() is not None:
            raise extension_error()
        if not args.dry_run and not build_info().get("cuda"):
            raise RuntimeError("built without CUDA: FORCE_CUDA=1 pip install ... -e .")
        return str(build_info())

    report.check("machine", machine)
    report.check("operators are built", operators)


def operators(report: Report, args: argparse.Namespace) -> None:
    """tests/gpu/test_operators.py, a row a test."""
    import xml.etree.ElementTree as xml

    results = args.output / "operators.xml"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider"]
    command.append(f"--junitxml={results}")
    host = {"WSIS_D2_HOST_KERNELS": args.host_kernels} if args.host_kernels else {}
    subprocess.run([*command, "tests/gpu/test_operators.py"], cwd=ROOT, env=os.environ | host)
    for case in xml.parse(results).iter("testcase"):
        bad = [case.find(kind) for kind in ("failure", "error")]
        bad = next((found for found in bad if found is not None), None)
        skipped = case.find("skipped")
        outcome = "FAIL" if bad is not None else "-" if skipped is not None else "ok"
        note = (bad if bad is not None else skipped).get("message") if outcome != "ok" else ""
        report.add(case.get("name"), outcome, note or f"{float(case.get('time')):.1f} s")


SANITIZED = """
import sys, torch
sys.path[:0] = sys.argv[2:]
from gpu.test_operators import run_case
for number, (height, width, labels) in enumerate(
    ((1, 1, 1), (1, 90, 33), (64, 1, 40), (33, 70, 5), (90, 97, 21), (9, 9, 1030))
):
    for dtype in (torch.float32, torch.float64):
        options = dict(iterations=3, normalization=("after", "symmetric")[number % 2],
                       recompute=number % 3 == 0, bilateral_xy=20.0, bilateral_rgb=9.0)
        run_case((height, width, labels, options), sys.argv[1], dtype)
print("clean")
"""


def sanitizer(report: Report, args: argparse.Namespace) -> None:
    tool = shutil.which("compute-sanitizer")
    if tool is None and not args.dry_run:
        report.add("compute-sanitizer", "-", "not installed; it comes with the CUDA toolkit")
        return
    script = ["-c", SANITIZED, "cpu" if args.dry_run else "cuda", str(ROOT), str(ROOT / "tests")]
    env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    # initcheck must see torch's writes too, so it takes every kernel; racecheck knows only shared
    # memory, that of the blocks with phases.
    for kind, only in (
        ("memcheck", ["--kernel-name", "kns=run_"]),
        ("racecheck", ["--kernel-name", "kns=run_block"]),
        ("initcheck", []),
    ):

        def one(kind=kind, only=only):
            checked = [] if args.dry_run else [tool, "--tool", kind, "--error-exitcode", "9", *only]
            log = args.output / f"sanitizer_{kind}.log"
            limit = None if args.dry_run else SANITIZER_LIMIT
            status = run_limited([*checked, sys.executable, *script], log, limit, cwd=ROOT, env=env)
            if status is None:
                raise TimeoutError(f"more than {limit:.0f} s; see {log}")
            if status != 0 or "clean" not in log.read_text():
                raise AssertionError(log.read_text()[-600:])
            return "dry run, without the tool" if args.dry_run else None

        report.check(f"compute-sanitizer {kind}", one)
        if args.dry_run:
            return


def clock(args: argparse.Namespace, function: Callable, repeat: int) -> float:
    """Median milliseconds, by CUDA events."""
    if args.dry_run:
        start = time.perf_counter()
        function()
        return (time.perf_counter() - start) * 1e3
    for _ in range(3):
        function()
    times = []
    for _ in range(repeat):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[repeat // 2]


def benchmark(report: Report, args: argparse.Namespace) -> None:
    import bm_dense_crf as bm
    from gpu.traffic import bytes_per_iteration

    from wsis_d2.layers import mean_field
    from wsis_d2.layers.native_crf import build_lattice

    device = "cpu" if args.dry_run else "cuda"
    rate = 1e12
    if not args.dry_run:
        source = torch.empty(1 << 30, device=device).normal_()
        target = torch.empty_like(source)
        rate = 8 * source.numel() / clock(args, lambda: target.copy_(source), 5) * 1e3
        report.add("copying", "-", f"{rate / 1e9:.0f} GB/s")
        del source, target
    head = dict(bilateral_weight=4.0, bilateral_xy=49.0, bilateral_rgb=5.0)
    cases = [
        (375, 500, 21, "A", 10),
        (375, 500, 21, "B", 10),
        (521, 521, 40, "head", 3),
        (1024, 2048, 19, "A", 10),
        (1024, 2048, 19, "B", 10),
    ]
    if args.dry_run:
        cases = [(48, 64, 5, "A", 2), (33, 40, 7, "head", 1)]
    for height, width, labels, name, iterations in cases:

        def one(height=height, width=width, labels=labels, name=name, iterations=iterations):
            options = dict(bm.SETS.get(name, head), **bm.SPATIAL, iterations=iterations)
            image = bm.make_picture(args.image, height, width).to(device)
            scores = bm.make_scores(labels, height, width).to(device)
            leaf = scores.clone().requires_grad_()
            sigmas = options["bilateral_xy"], options["bilateral_rgb"]

            def both():
                mean_field(leaf, image, **options).backward(scores)

            if not args.dry_run:
                torch.cuda.reset_peak_memory_stats()
            header, _, index = build_lattice(image, *sigmas)
            peaks = [0.0]
            if not args.dry_run:
                peaks = [torch.cuda.max_memory_allocated() / 2**30]
            build = clock(args, lambda: build_lattice(image, *sigmas), 7)
            forward = clock(args, lambda: mean_field(scores, image, **options), 7)
            whole = clock(args, both, 7)
            each = (forward - build) / iterations
            note = f"build {build:.2f} ms, forward {forward:.2f}, with backward {whole:.2f}"
            if args.dry_run:
                return f"{note} (on the CPU)"
            peaks.append(torch.cuda.max_memory_allocated() / 2**30)
            traffic = bytes_per_iteration(header, index, labels)
            floor = sum(traffic.values()) / rate * 1e3
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CUDA]
            ) as profile:
                both()
                torch.cuda.synchronize()
            print(profile.key_averages().table(sort_by="self_device_time_total", row_limit=25))
            return (
                f"{note}; an iteration {each:.3f} ms = {each / floor:.2f} x its traffic of "
                f"{sum(traffic.values()) / 1e6:.0f} MB ({floor:.3f} ms); peak {peaks[0]:.2f} GiB "
                f"built, {peaks[1]:.2f} in all"
            )

        report.check(f"{height} x {width} x {labels} {name}", one)


def step(report: Report, args: argparse.Namespace) -> None:
    """One training step of R-101 at 521 x 521 with 30 instances, with and without the CRF."""
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage
    from helpers.crf_inputs import picture

    from wsis_d2.config import read_config

    device = "cpu" if args.dry_run else "cuda"
    side, things, turns = (129, 6, 1) if args.dry_run else (521, 30, 10)
    base = [
        "MODEL.WSIS.TRAIN_BOXES", "gt",
        "MODEL.WSIS.THING_IDS", str(list(range(PALETTE_CLASSES))).replace(" ", ""),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(PALETTE_CLASSES + 1),
        "MODEL.ROI_HEADS.NUM_CLASSES", str(PALETTE_CLASSES), "MODEL.DEVICE", device,
    ]  # fmt: skip
    if args.dry_run:
        base += ["MODEL.RESNETS.DEPTH", "50", "MODEL.SEMANTIC.RESNETS.DEPTH", "50"]

    def record():
        generator = torch.Generator().manual_seed(0)
        corners = torch.rand(things, 2, generator=generator) * side * 0.5
        sides = side * (0.1 + 0.3 * torch.rand(things, 2, generator=generator))
        instances = Instances((side, side))
        instances.gt_boxes = Boxes(torch.cat([corners, corners + sides], 1))
        instances.gt_classes = torch.arange(things) % PALETTE_CLASSES
        labels = torch.full((side, side), -1)
        for number, (x0, y0, x1, y1) in enumerate(instances.gt_boxes.tensor.int().tolist()):
            labels[y0:y1, x0:x1] = number
        return dict(
            image=picture(side, side), instances=instances, inst_seg=labels,
            sem_seg=torch.randint(0, PALETTE_CLASSES + 1, (side, side), generator=generator),
            inst_classes=instances.gt_classes.clone(), file_name="drawn", height=side, width=side,
        )  # fmt: skip

    variants = {
        "end_to_end": [],
        "end_to_end, no CRF": ["MODEL.INSTANCE_HEAD.ITERATIONS", "0"],
        "semantic": ["MODEL.WSIS.STAGE", "semantic"],
    }
    for name, extra in variants.items():

        def one(extra=extra):
            cfg = read_config(
                str(ROOT / "configs/PascalVOC-PanopticSegmentation/wsis_R_101_weak.yaml"),
                base + extra,
            )
            torch.manual_seed(0)
            net = build_model(cfg).train()
            optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 1e-5)
            batch = [record()]

            def go():
                loss = sum(net(batch).values())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                return loss

            with EventStorage():
                if args.dry_run:
                    return f"loss {float(go()):.2f} at {side} x {side}, R-50, on the CPU"
                torch.cuda.reset_peak_memory_stats()
                each = clock(args, go, turns)
                with torch.profiler.profile(
                    activities=[torch.profiler.ProfilerActivity.CUDA]
                ) as profile:
                    loss = go()
                    torch.cuda.synchronize()
                print(profile.key_averages().table(sort_by="self_device_time_total", row_limit=15))
                with warnings.catch_warnings(record=True) as waits:
                    warnings.simplefilter("always")
                    torch.cuda.set_sync_debug_mode("warn")
                    go()
                    torch.cuda.set_sync_debug_mode("default")
            for place in sorted({f"{w.filename}:{w.lineno}" for w in waits}):
                print("  the host waits at", place)
            assert torch.isfinite(loss), "the loss is not finite"
            busy = sum(e.self_device_time_total for e in profile.key_averages()) / 1e3
            peak = torch.cuda.max_memory_allocated() / 2**30
            return f"{each:.1f} ms, GPU busy {busy:.1f} ms, {len(waits)} waits, peak {peak:.1f} GiB"

        report.check(f"a step of {name}", one)


def training(report: Report, args: argparse.Namespace) -> None:
    """The drawn sample's semantic stage, the same on the GPU and on the CPU."""

    def one():
        data = args.output / "datasets"
        env = os.environ | {
            "DETECTRON2_DATASETS": str(data),
            "OMP_NUM_THREADS": "4",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, "datasets/prepare_sample.py"]
        subprocess.run(
            [*command, "--output", str(data / "wsis_sample")], cwd=ROOT, env=env, check=True
        )
        devices = ["cpu"] if args.dry_run else ["cuda", "cpu"]
        runs = {}
        for device in devices:  # side by side
            with open(args.output / f"training_{device}.log", "w") as log:
                runs[device] = subprocess.Popen(
                    [
                        sys.executable, "tools/train_net.py",
                        "--config-file", "configs/Sample-Panoptic/semantic_full.yaml",
                        "MODEL.DEVICE", device, "SOLVER.MAX_ITER", "3" if args.dry_run else "60",
                        "TEST.EVAL_PERIOD", "0", "SEED", "1",
                        "OUTPUT_DIR", str(args.output / f"training_{device}"),
                    ],
                    cwd=ROOT, env=env, stdout=log, stderr=log,
                )  # fmt: skip
        losses = {}
        for device, run in runs.items():
            if run.wait() != 0:
                for other in runs.values():
                    other.kill()
                raise AssertionError((args.output / f"training_{device}.log").read_text()[-400:])
            lines = (args.output / f"training_{device}/metrics.json").read_text().splitlines()
            found = [entry for entry in map(json.loads, lines) if "total_loss" in entry]
            losses[device] = found[-1]["total_loss"]
        if not args.dry_run:
            a, b = losses["cuda"], losses["cpu"]
            assert abs(a - b) < 0.1 * b, f"loss {a:.3f} on the GPU, {b:.3f} on the CPU"
        return ", ".join(f"{device}: loss {loss:.3f}" for device, loss in losses.items())

    report.check("the sample's semantic stage", one)


def run_all(args: argparse.Namespace) -> int:
    rows, end = [], time.perf_counter() + WHOLE
    for phase, limit in PHASES.items():
        start = time.perf_counter()
        found, log = args.output / f"{phase}.json", args.output / f"{phase}.log"
        found.unlink(missing_ok=True)
        command = [sys.executable, "-u", __file__, "--phase", phase, *sys.argv[1:]]
        if not args.dry_run:
            limit = max(5.0, min(limit, end - start))
        status = run_limited(command, log, None if args.dry_run else limit)
        part = json.loads(found.read_text()) if found.exists() else []
        rows += [(phase, *row) for row in part]
        if status is None:
            rows.append((phase, "took too long", "FAIL", f"more than {limit:.0f} s; see {log}"))
        elif not part or (status != 0 and not any(row[1] == "FAIL" for row in part)):
            rows.append((phase, "did not end", "FAIL", log.read_text()[-300:]))
        print(f"{phase}: {time.perf_counter() - start:.0f} s", flush=True)
    lines = ["| phase | what | outcome | |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(" ".join(str(x).split()) for x in row) + " |" for row in rows]
    (args.output / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return int(any(row[2] == "FAIL" for row in rows))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="for logs and table.md")
    parser.add_argument("--phase", choices=list(PHASES), help="this one alone; default: all")
    parser.add_argument("--image", nargs="*", default=[], help="pictures for the benchmark")
    parser.add_argument("--dry-run", action="store_true", help="every phase as far as a CPU goes")
    parser.add_argument("--host-kernels", default="", help="the kernels as loops; with --dry-run")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        print("run_checks: there is no GPU; --dry-run tries every phase without.", file=sys.stderr)
        return 2
    args.output = args.output.resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.phase is None:
        return run_all(args)
    report = Report(args.output / f"{args.phase}.json")
    globals()[args.phase](report, args)
    return int(any(outcome == "FAIL" for _, outcome, _ in report.rows))


if __name__ == "__main__":
    sys.exit(main())
