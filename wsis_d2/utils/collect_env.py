# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What is installed, what is built, and what to do about what is missing.

Run ``python -m wsis_d2.utils.collect_env``.
"""

import importlib
import os
import platform
import sys
from importlib import metadata

from tabulate import tabulate

from wsis_d2.utils.processes import usable_cores

_PACKAGES = (
    "numpy", "scipy", "opencv-python-headless", "pillow", "higra", "numba", "fvcore", "iopath",
    "pycocotools", "panopticapi-lite", "pydensecrf2", "cityscapesscripts", "h5py", "kornia-rs",
    "ray",
)  # fmt: skip


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _torch_rows() -> list[tuple[str, str]]:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        return [("torch", f"cannot be imported: {error}; see docs/install.md")]
    rows = [("torch", torch.__version__), ("torch's CUDA", str(torch.version.cuda))]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        rows.append(("GPUs", ", ".join(names)))
    else:
        rows.append(("GPUs", "none visible"))
    rows.append(("torch threads", str(torch.get_num_threads())))
    rows.append(("torchvision", _version("torchvision")))
    return rows


def _operator_rows() -> list[tuple[str, str]]:
    from wsis_d2.layers._extension import build_info, extension_error, library_path

    error = extension_error()
    if error is not None:
        return [("operators", str(error))]
    info = build_info()
    return [
        ("operators", str(library_path())),
        ("built for torch", str(info.get("torch"))),
        ("CUDA part", f"CUDA {info['cuda']}" if info.get("cuda") else "not built"),
        ("GPU architectures", str(info.get("architectures"))),
    ]


def collect_env() -> str:
    """Return a table of the machine, the packages and the operators, with what to do."""
    rows = [
        ("platform", platform.platform()),
        ("processor", platform.machine()),
        ("cores usable", f"{usable_cores()} of {os.cpu_count()}"),
        ("Python", sys.version.split()[0]),
        *_torch_rows(),
    ]
    from wsis_d2.utils.requirements import detectron2_version

    rows.append(("detectron2", str(detectron2_version())))
    try:
        wsis_d2 = importlib.import_module("wsis_d2")
        rows.append(("wsis_d2", wsis_d2.__version__))
        rows += _operator_rows()
    except ImportError as error:
        rows.append(("wsis_d2", f"cannot be imported: {error}"))
    rows += [(package, _version(package)) for package in _PACKAGES]
    variables = sorted(k for k in os.environ if k in ("DETECTRON2_DATASETS", "OMP_NUM_THREADS"))
    rows += [(f"${name}", os.environ[name]) for name in variables]
    return tabulate(rows)


if __name__ == "__main__":
    print(collect_env())
