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

from wsis_d2.layers._extension import extension_error

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "wsis_d2" / "layers" / "csrc"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.skipif(extension_error() is not None, reason="operators are not built"),
]

COMPARE = """
import sys, torch
from helpers.crf_inputs import picture, unary
from wsis_d2.layers import mean_field, permutohedral_filter, spatial_filter

def results():
    out = []
    image = picture(40, 53)
    for labels in (1, 5, 21, 33):
        for normalization in ("after", "symmetric"):
            for iterations, recompute in ((1, False), (5, True)):
                scores = unary(labels, 40, 53, dtype=torch.float64).requires_grad_()
                leaf = dict(dtype=torch.float64, requires_grad=True)
                weights = [torch.tensor(w, **leaf) for w in (4.0, 3.0)]
                result = mean_field(scores, image, bilateral_weight=weights[0],
                                    gaussian_weight=weights[1], iterations=iterations,
                                    normalization=normalization, recompute=recompute)
                (result * unary(labels, 40, 53, seed=9).cos()).sum().backward()
                out += [result.detach(), scores.grad, weights[0].grad, weights[1].grad]
    values = unary(4, 40, 53, seed=5, dtype=torch.float64)
    for normalization in ("none", "after", "symmetric"):
        for transpose in (False, True):
            rest = dict(normalization=normalization, transpose=transpose)
            out.append(permutohedral_filter(values, image, sigma_xy=20, sigma_rgb=9, **rest))
            for sigma in (1, 3, 7, 13):
                out.append(spatial_filter(values, sigma=sigma, **rest))
    return out

expected = results()
torch.ops.load_library(sys.argv[1])  # takes the CPU's operators over
found, again = results(), results()
for a, b, c in zip(expected, found, again):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * float(a.abs().max()))
    assert torch.equal(b, c)
print("compared", len(expected))
"""

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
            lattice = ops.build_lattice(image, 20.0, 9.0, normalization)
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
    command = ["g++", "-std=c++20", "-fPIC", "-shared", "-fopenmp", *flags, *includes]
    command += ["-x", "c++", *map(str, sources), "-o", str(target)]
    command += [f"-L{packages / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch"]
    command += [f"-Wl,-rpath,{packages / 'lib'}"]
    subprocess.run(command, check=True)


def run(script: str, library: Path, **environment) -> str:
    paths = [str(ROOT), str(ROOT / "tests")]
    done = subprocess.run(
        [sys.executable, "-c", script, str(library)],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths), **environment),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_gpu_kernels_run_on_the_cpu_give_what_the_cpu_operators_give(tmp_path):
    """Every GPU kernel is one independent thread an element, so a loop can stand for the GPU."""
    library = tmp_path / "device.so"
    sources = [CSRC / "dense_crf" / name for name in ("spatial.cpp", "lattice.cpp")]
    sources += [CSRC / "dense_crf" / "workspace.cpp"]
    sources += [CSRC / "dense_crf" / "device" / "ops_cuda.cu"]
    compile_library(library, sources, ["-O1", "-DWSIS_CRF_HOST_CHECK"])
    assert "compared" in run(COMPARE, library)


def test_address_and_undefined_behaviour_sanitizers_find_nothing(tmp_path):
    library = tmp_path / "sanitized.so"
    runtime = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(runtime).is_file():
        pytest.skip("the address sanitizer's runtime is not installed")
    sources = sorted((CSRC / "dense_crf").glob("*.cpp"))
    flags = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-w"]
    compile_library(library, sources, flags)
    standard = subprocess.run(
        ["g++", "-print-file-name=libstdc++.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    for capability in ("default", "avx2", "avx512"):
        output = run(
            SANITIZE,
            library,
            LD_PRELOAD=f"{runtime} {standard}",
            ASAN_OPTIONS="detect_leaks=0",
            WSIS_D2_CPU_CAPABILITY=capability,
        )
        assert "sanitized" in output and "runtime error" not in output
