# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What v0.6 needs to run on a current Python stack, as search and replace.

Every rule says why it is there and how often it must match. One that matches more or less often
stops the build: then the source is not the one these rules were written for.
"""

import re
from dataclasses import dataclass
from pathlib import Path


class RuleError(RuntimeError):
    """A rule did not match as often as it must."""


@dataclass(frozen=True)
class Rule:
    """One search and replace in one file.

    Attributes:
        path: the file, relative to the source tree.
        find: a regular expression.
        replace: the replacement, as for :func:`re.sub`.
        count: how often ``find`` must match, exactly.
        why: the reason.
    """

    path: str
    find: str
    replace: str
    count: int
    why: str

    def apply(self, tree: Path) -> None:
        """Rewrite the file below ``tree``; raises :class:`RuleError` unless it matches."""
        file = tree / self.path
        if not file.is_file():
            raise RuleError(f"{self.path}: not in the source tree (rule: {self.why})")
        text, found = re.subn(self.find, self.replace, file.read_text(encoding="utf-8"))
        if found != self.count:
            raise RuleError(
                f"{self.path}: {self.find!r} matched {found} times, expected {self.count} "
                f"(rule: {self.why})"
            )
        file.write_text(text, encoding="utf-8")


_NUMPY = "NumPy 1.24 removed np.bool, np.int, np.float and np.str, aliases of the builtins"
_OPERATORS = (
    "the source distribution has no C++ sources: operators that need them fail when used, "
    "with the reason, instead of when imported"
)
_RESOURCES = "setuptools 81 removed pkg_resources; importlib.resources replaces it"


def _numpy(path: str, count: int) -> Rule:
    return Rule(path, r"\bnp\.(bool|int|float|str)\b", r"\1", count, _NUMPY)


def _operators(path: str) -> Rule:
    return Rule(
        path,
        r"(?m)^from detectron2 import _C$",
        "try:\n    from detectron2 import _C\nexcept ImportError:\n"
        "    from detectron2._no_operators import _C",
        1,
        _OPERATORS,
    )


RULES = (
    Rule(
        "detectron2/data/transforms/transform.py",
        r"\bImage\.LINEAR\b",
        "Image.BILINEAR",
        1,
        "Pillow 10 removed LINEAR, another name of BILINEAR",
    ),
    _numpy("detectron2/data/build.py", 2),
    _numpy("detectron2/data/datasets/pascal_voc.py", 1),
    _numpy("detectron2/evaluation/pascal_voc_evaluation.py", 2),
    _numpy("detectron2/evaluation/sem_seg_evaluation.py", 7),
    _numpy("detectron2/structures/masks.py", 3),
    _numpy("detectron2/utils/video_visualizer.py", 1),
    _numpy("detectron2/utils/visualizer.py", 3),
    _operators("detectron2/layers/deform_conv.py"),
    _operators("detectron2/layers/roi_align_rotated.py"),
    _operators("detectron2/layers/rotated_boxes.py"),
    Rule(
        "detectron2/evaluation/coco_evaluation.py",
        r"(?m)^from detectron2\.evaluation\.fast_eval_api import COCOeval_opt$",
        "try:\n    from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
        "except ImportError:  # its C++ part is not built: the plain COCOeval gives the same\n"
        "    COCOeval_opt = COCOeval",
        1,
        _OPERATORS,
    ),
    Rule(
        "detectron2/model_zoo/model_zoo.py",
        r"(?m)^import pkg_resources$",
        "from importlib import resources",
        1,
        _RESOURCES,
    ),
    Rule(
        "detectron2/model_zoo/model_zoo.py",
        r"pkg_resources\.resource_filename\(\n"
        r'\s+"detectron2\.model_zoo", os\.path\.join\("configs", config_path\)\n\s+\)',
        'str(resources.files("detectron2.model_zoo") / "configs" / config_path)',
        1,
        _RESOURCES,
    ),
    Rule(
        "detectron2/modeling/anchor_generator.py",
        r"torch\.meshgrid\(shifts_y, shifts_x\)",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        1,
        "torch warns in every run that it will ask for the indexing that was the only one",
    ),
)
