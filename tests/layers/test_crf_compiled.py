# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The C++ and CUDA sources compiled in other ways: the GPU's kernels on the CPU, sanitizers."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from helpers.shared_data import shared_data

from wsis_d2.layers._extension import extension_error

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "wsis_d2" / "layers" / "csrc"
GPU_TESTS = ROOT / "tests" / "gpu" / "test_operators.py"
pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.skipif(extension_error() is not None, reason="operators are not built"),
]

SANITIZE = """
import sys, torch
torch.set_num_threads(2)
torch.ops.load_library(sys.argv[1])
ops = torch.ops.wsis_d2
generator = torch.Generator().manual_seed(0)
for labels, height, width in ((1, 1, 1), (5, 33, 70), (21, 300, 330), (40, 64, 1), (33, 1, 90)):
    for dtype in (torch.float32, torch.float64):
        for normalization in (1, 2):
            image = torch.rand(3, height, width, generator=generator).to(dtype) * 255
            image[:, : height // 2] = 7
            scores = torch.randn(labels, height, width, generator=generator).to(dtype)
            weights = [torch.tensor(w, dtype=dtype) for w in (4.0, 3.0)]
            lattice = ops.build_lattice(image, 20.0, 9.0, normalization, [], [])
            for sigma, exact, every in ((3.0, False, 1), (9.0, False, 2), (1.0, True, 2)):
                rest = (*lattice, *weights, sigma, exact, 3, every)
                out, saved = ops.mean_field(scores, *rest)
                ops.mean_field_backward(out, saved, scores, *rest)
            huge = [torch.tensor(w, dtype=dtype) for w in (400.0, -300.0)]
            ops.mean_field(scores, *lattice, *huge, 3.0, False, 3, 0)
            ops.lattice_filter(scores, *lattice, True)
            ops.spatial_filter(scores, 30.0, False, normalization, True)
ops.clear_workspace()
print("sanitized")
"""


def compile_library(target: Path, sources, flags) -> None:
    packages = Path(torch.__file__).parent
    includes = [
        f"-I{CSRC}",
        f"-isystem{packages / 'include'}",
        f"-isystem{packages / 'include' / 'torch' / 'csrc' / 'api' / 'include'}",
        f"-isystem{sysconfig.get_paths()['include']}",
    ]
    flags = [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}", *flags]
    command = ["g++", "-std=c++20", "-fPIC", "-shared", "-fopenmp", *flags, *includes]
    command += ["-x", "c++", *map(str, sources), "-o", str(target)]
    command += [f"-L{packages / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch"]
    command += [f"-Wl,-rpath,{packages / 'lib'}"]
    subprocess.run(command, check=True)


def run(script: str, library: Path, **environment) -> str:
    return start([sys.executable, "-c", script, str(library)], **environment)


def start(command, **environment) -> str:
    paths = [str(ROOT), str(ROOT / "tests")]
    done = subprocess.run(
        command,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths), **environment),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def compile_gpu_kernels(target: Path, flags) -> None:
    """The CUDA sources as loops on the CPU."""
    sources = [CSRC / "dense_crf" / name for name in ("spatial.cpp", "lattice.cpp")]
    sources += [CSRC / "dense_crf" / "workspace.cpp"]
    sources += [CSRC / "dense_crf" / "device" / "ops_cuda.cu"]
    compile_library(target, sources, ["-DWSIS_CRF_HOST_CHECK", *flags])


def run_gpu_tests(library: Path, *options, **environment) -> str:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *options]
    return start([*command, str(GPU_TESTS)], WSIS_D2_HOST_KERNELS=str(library), **environment)


def asan_environment() -> dict:
    """What loads the address sanitizer's runtime before Python; skips where there is none."""
    names = ("libasan.so", "libstdc++.so")
    found = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in names
    ]
    if not Path(found[0]).is_file():
        pytest.skip("the address sanitizer's runtime is not installed")
    return dict(LD_PRELOAD=" ".join(found), ASAN_OPTIONS="detect_leaks=0")


SANITIZERS = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-w"]


def fuses() -> bool:
    return "fma" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False


@pytest.fixture(scope="module")
def fusing_library(tmp_path_factory):
    """The GPU's kernels as loops, by a compiler that fuses products and sums as nvcc does."""
    library = tmp_path_factory.mktemp("kernels") / "device.so"
    fusing = ["-mfma", "-ffp-contract=fast"] if fuses() else []
    compile_gpu_kernels(library, ["-O1", "-fexpensive-optimizations", *fusing])
    return library


def test_gpu_kernels_run_on_the_cpu_give_what_the_cpu_operators_give(fusing_library):
    """A loop can stand for the GPU: no thread reads what another one of its launch writes."""
    output = run_gpu_tests(fusing_library)
    assert " passed" in output and "failed" not in output


PHOTOGRAPHS = """
import sys, cv2, torch
from wsis_d2.layers.native_crf import build_lattice
from gpu.test_operators import vertices

def facts():
    found = []
    for path in sys.argv[2:]:
        image = torch.from_numpy(cv2.imread(path)).permute(2, 0, 1)
        for sigmas in ((49.0, 5.0), (67.0, 3.0)):
            lattice = build_lattice(image, *sigmas, "none")
            rows = lattice[1][:, :6].double()  # sums that do not depend on the rows' order
            found.append((vertices(lattice), rows.sum(0), (rows * rows).sum(0)))
    return found

expected = facts()
torch.ops.load_library(sys.argv[1])
for (a, b, c), (d, e, f) in zip(expected, facts()):
    assert a == d, (a, d)
    torch.testing.assert_close(b, e, rtol=1e-12, atol=0)
    torch.testing.assert_close(c, f, rtol=1e-12, atol=0)
print("same lattices", len(expected))
"""


def test_lattices_of_photographs_are_the_cpus_where_a_compiler_fuses(fusing_library):
    pictures = sorted((shared_data("voc_animals") / "images").glob("*.jpg"))[:3]
    command = [sys.executable, "-c", PHOTOGRAPHS, str(fusing_library), *map(str, pictures)]
    assert "same lattices" in start(command)


@pytest.mark.long
def test_sanitizers_find_nothing_in_the_gpu_kernels(tmp_path):
    library = tmp_path / "device.so"
    environment = asan_environment()
    compile_gpu_kernels(library, SANITIZERS)
    output = run_gpu_tests(library, **environment)
    assert " passed" in output and "runtime error" not in output


@pytest.mark.long
def test_sanitizers_find_nothing_in_the_cpu_kernels(tmp_path):
    library = tmp_path / "sanitized.so"
    environment = asan_environment()
    compile_library(library, sorted((CSRC / "dense_crf").glob("*.cpp")), SANITIZERS)
    for capability in ("default", "avx2", "avx512"):
        output = run(SANITIZE, library, WSIS_D2_CPU_CAPABILITY=capability, **environment)
        assert "sanitized" in output and "runtime error" not in output
