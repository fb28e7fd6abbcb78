# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Gathers the wheels that an offline machine lacks, in parts small enough to carry.

    python3 packaging/wheelhouse.py --python 3.12 --have pip-list.txt --output wheelhouse

The machine needs torch and torchvision of its own. What `requirements.txt` pins beside them is
downloaded as wheels for that Python on Linux x86-64 (as a source archive where no wheel exists:
those are built on the machine), our Detectron2 is built as a wheel, and the files are put into
folders part1, part2, ... of at most 60 MB each.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PART_BYTES = 60_000_000
# Installed by the machine's owner, together with its driver; their wheels are gigabytes.
NOT_CARRIED = {"torch", "torchvision"}
EXTRA = ["panopticapi-lite==0.2.0"]
# Puts the parts together again: all files into wheels/, pieces of a large one joined.
JOIN = """\
#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p wheels
for file in part*/*; do
  case $file in
    *.[0-9][0-9][0-9]) ;;
    *.whl | *.tar.gz | *.zip) cp "$file" wheels/ ;;
  esac
done
for first in part*/*.000; do
  [ -e "$first" ] || continue
  name=$(basename "$first" .000)
  # Pieces in the order of their numbers, whichever part each lies in.
  ls part*/"$name".[0-9][0-9][0-9] | awk -F. '{print $NF, $0}' | sort | cut -d" " -f2- |
    xargs cat > "wheels/$name"
done
"""
# Platforms a current Linux accepts, newest first.
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (34, 31, 28, 27, 24, 17)] + ["manylinux2014_x86_64"]


def normal(name: str) -> str:
    """Return a package name in the index's normal form."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_names(file: Path) -> set[str]:
    """Return the packages that a `pip list` or `pip freeze` output names."""
    names = set()
    for line in file.read_text(encoding="utf-8").splitlines():
        found = re.match(r"\s*([A-Za-z0-9][\w.-]*)", line)
        if found and found.group(1) != "Package":
            names.add(normal(found.group(1)))
    return names


def read_requirements(file: Path) -> list[str]:
    """Return the pinned requirements of a requirements file."""
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def pip(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False
    )


def make_wheels(requirements: list[str], python: str, folder: Path) -> list[str]:
    """Fill ``folder`` with what the requirements and their dependencies need on that Python.

    Pure Python packages without a wheel on the index are built here; native ones stay source
    archives, without their dependencies. Returns what went wrong, a line each.
    """
    target = [
        "--only-binary=:all:", f"--python-version={python}", "--implementation=cp",
        *[f"--platform={p}" for p in PLATFORMS],
    ]  # fmt: skip
    failed, with_wheel = [], []
    for requirement in requirements:
        if requirement not in EXTRA:
            with_wheel.append(requirement)
        if requirement == "detectron2":  # built already
            continue
        print(f"wheelhouse: {requirement}", file=sys.stderr)
        if (
            pip("download", "-q", "--no-deps", "-d", str(folder), *target, requirement).returncode
            == 0
        ):
            continue
        with tempfile.TemporaryDirectory() as name:
            built = pip("wheel", "-q", "--no-deps", "-w", name, requirement)
            pure = list(Path(name).glob("*-none-any.whl"))
            if built.returncode == 0 and pure:
                shutil.move(str(pure[0]), folder / pure[0].name)
                continue
        source = pip(
            "download", "-q", "--no-deps", "--no-binary=:all:", "-d", str(folder), requirement
        )
        if source.returncode:
            failed.append(f"{requirement}: {source.stderr.strip().splitlines()[-1]}")
        if requirement in with_wheel:
            with_wheel.remove(requirement)
    # All at once, so that every package gets one version that suits the others.
    links = ["--find-links", str(folder)]
    run = pip("download", "-q", "-d", str(folder), *links, *target, *with_wheel)
    if run.returncode:
        failed.append(f"dependencies: {run.stderr.strip().splitlines()[-1]}")
    return failed


def package_of(file: Path) -> str:
    """Return the package that a wheel or source archive is of."""
    return normal(re.split(r"-\d", file.name)[0])


def cut(file: Path) -> list[Path]:
    """Cut a file that is too large for one part into pieces NAME.000, NAME.001, ..."""
    pieces = []
    with open(file, "rb") as stream:
        while chunk := stream.read(PART_BYTES):
            pieces.append(file.with_name(f"{file.name}.{len(pieces):03d}"))
            pieces[-1].write_bytes(chunk)
    file.unlink()
    return pieces


def split(files: list[Path], output: Path) -> list[Path]:
    """Move files into part1, part2, ... below `output`, each at most PART_BYTES; return these."""
    pieces = [
        piece
        for file in files
        for piece in (cut(file) if file.stat().st_size > PART_BYTES else [file])
    ]
    parts: list[tuple[Path, int]] = []
    for file in sorted(pieces, key=lambda f: -f.stat().st_size):
        size = file.stat().st_size
        for index, (folder, used) in enumerate(parts):
            if used + size <= PART_BYTES:
                parts[index] = (folder, used + size)
                break
        else:
            folder = output / f"part{len(parts) + 1}"
            folder.mkdir(parents=True)
            parts.append((folder, size))
        shutil.move(str(file), folder / file.name)
    return [folder for folder, _ in parts]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="3.11", help="the machine's Python, such as 3.12")
    parser.add_argument("--have", type=Path, help="output of the machine's `pip list`: not needed")
    parser.add_argument("--output", type=Path, default=Path("wheelhouse"))
    args = parser.parse_args()
    version = re.search(r"3\.\d+", args.python)
    if version is None:
        parser.error(f"--python {args.python}: expected a version such as 3.12")
    have = set(NOT_CARRIED)
    if args.have:
        if not args.have.is_file():
            parser.error(f"--have {args.have}: no such file; make it with `pip list > FILE` there")
        have |= read_names(args.have)
    pinned = read_requirements(ROOT / "requirements.txt") + EXTRA
    wanted = [r for r in pinned if normal(re.split(r"[=<>~]", r)[0]) not in have]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "wheels"
        folder.mkdir()
        failed = []
        if "detectron2" not in have:
            print("wheelhouse: detectron2", file=sys.stderr)
            source = str(ROOT / "packaging" / "detectron2")
            built = pip("wheel", "--quiet", "--no-deps", "-w", str(folder), source)
            if built.returncode:
                failed.append(f"detectron2: {built.stderr.strip().splitlines()[-1]}")
            else:
                wanted.append("detectron2")
        failed += make_wheels(wanted, version.group(), folder)
        for file in folder.iterdir():
            package = package_of(file)
            if package in have or package.startswith(("nvidia-", "triton", "cuda-")):
                file.unlink()
        if args.output.exists():
            shutil.rmtree(args.output)
        parts = split(list(folder.iterdir()), args.output)
    (args.output / "part1" / "join.sh").write_text(JOIN)
    names = ", ".join(part.name for part in parts)
    print(f"wheelhouse: {names} in {args.output}. On the machine, with all of them in one folder:")
    print("  bash part1/join.sh")
    print("  pip install --no-index --no-deps --no-build-isolation wheels/*.whl")
    print("  pip install --no-build-isolation --no-deps -e .   # in the checkout")
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
