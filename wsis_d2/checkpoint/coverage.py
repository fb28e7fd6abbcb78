# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Whether arrays fill a network: every name, every shape, nothing left over."""

import logging
import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from wsis_d2.utils.errors import InputError

logger = logging.getLogger(__name__)

# Classifiers that serve training alone: they may be missing, and a model may lack them.
_AUXILIARY = re.compile(r"(^|\.)aux_")
# Made from the config, counted anew, or stored by old versions of Detectron2.
_NOT_LEARNED = re.compile(r"(^|\.)(num_batches_tracked|pixel_mean|pixel_std|cell_anchors(\.\d+)?)$")
_SHOWN = 3
TRAINED = "name the checkpoint that training wrote (OUTPUT_DIR/model_final.pth) and its config"


def is_auxiliary(name: str) -> bool:
    """Whether a parameter is of a classifier that serves training alone."""
    return bool(_AUXILIARY.search(name))


def load_into(
    module: nn.Module,
    arrays: Mapping[str, torch.Tensor],
    *,
    source: str,
    what: str = "the model",
    allow_missing: Sequence[str] = (),
    allow_foreign: Sequence[str] = (),
    folded: bool = False,
    partial: bool = False,
    hint: str = TRAINED,
    load: bool = True,
) -> list[str]:
    """Fill a module from arrays of the same names, after checking names and shapes.

    Every array of the module must be there in its shape, and none may be left over: a deeper
    network has all arrays of a shallower one.

    Args:
        module: any network, or part of one.
        arrays: by the module's names.
        source: begins messages: the key or option, and the file.
        what: names the module in messages.
        allow_missing, allow_foreign: beginnings of names that the file may lack, or have beside.
            Auxiliary classifiers may always be either.
        folded: the file's batch norms have scale and shift alone, with the statistics in them.
        partial: arrays that are missing or of another shape are left as they are.
        hint: ends messages: what to do.
        load: fill it; False checks alone.

    Returns:
        The names that were left as they were, in order.

    Raises:
        InputError: naming the first arrays that are missing, of another shape or left over, and
            how many; or no array fits or one holds integers, even where ``partial``. Nothing has
            been loaded then.
    """
    wanted = module.state_dict()
    statistics = ("running_mean", "running_var") if folded else ()
    names = [n for n in wanted if not _NOT_LEARNED.search(n) and not n.endswith(statistics)]
    missing = [n for n in names if n not in arrays]
    shapes = [n for n in names if n in arrays and arrays[n].shape != wanted[n].shape]
    kinds = [
        n for n in names
        if n in arrays and n not in shapes
        and wanted[n].is_floating_point() and not arrays[n].is_floating_point()
    ]  # fmt: skip
    unfit = {*missing, *shapes}
    left = [n for n in wanted if n in unfit]
    problems = []
    if names and len(left) == len(names):
        first = ", ".join(list(arrays)[:_SHOWN])
        problems.append(f"fills none of the {len(names)} arrays of {what}; it holds {first}, ...")
        if shapes:
            problems[0] = f"fits none of the {len(names)} arrays of {what}"
            problems.append(_shapes(shapes, arrays, wanted, what))
    elif not partial:
        lacking = [
            n for n in missing
            if not is_auxiliary(n) and not n.startswith(tuple(allow_missing))
        ]  # fmt: skip
        foreign = [
            n for n in arrays
            if n not in wanted and not is_auxiliary(n) and not _NOT_LEARNED.search(n)
            and not n.startswith(tuple(allow_foreign)) and not _is_folded_bias(n, wanted)
        ]  # fmt: skip
        if lacking:
            problems.append(f"lacks {len(lacking)} of {len(names)} arrays of {what}: "
                            f"{first_of(lacking)}")  # fmt: skip
        if shapes:
            problems.append(_shapes(shapes, arrays, wanted, what))
        if foreign:
            problems.append(
                f"has {len(foreign)} arrays that {what} does not have: {first_of(foreign)}"
            )
    if kinds:
        problems.append(
            f"has {len(kinds)} arrays of {what} in integers, as quantised networks do, expected "
            f"floating point: {first_of(kinds)}"
        )
    if problems:
        raise InputError(f"{source}: {'; '.join(problems)}; {hint}")
    if load:
        fitting = {n: arrays[n] for n in wanted if n in arrays and n not in unfit}
        module.load_state_dict(fitting, strict=False)
        logger.info("%s: filled %d of %d arrays of %s", source, len(fitting), len(wanted), what)
    return left


def _is_folded_bias(name: str, wanted: Mapping[str, torch.Tensor]) -> bool:
    """Whether it is the bias, mostly zero, of a convolution whose norm has one (MSRA's conv1)."""
    stem = name.removesuffix(".bias")
    return stem != name and f"{stem}.norm.bias" in wanted


def first_of(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _shapes(names: Sequence[str], arrays: Mapping, wanted: Mapping, what: str) -> str:
    texts = [f"{n} is {tuple(arrays[n].shape)}, not {tuple(wanted[n].shape)}" for n in names]
    return f"has {len(names)} arrays of {what} in another shape: {first_of(texts)}"
