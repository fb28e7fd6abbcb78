# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The stages that a WeakPanopticRCNN is trained in (paper 3.5, 4.2), as a table."""

import dataclasses
from typing import Any

PARTS = ("detector", "semantic", "instance")
"""The parts of a network, and the names of what they learn from."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One value of MODEL.WSIS.STAGE.

    Attributes:
        name: the value.
        parts: the parts that the network has then, some of ``PARTS``.
        trained: those that learn, each from its own losses: of boxes, of every pixel's class, of
            every pixel's instance. The others are fixed.
    """

    name: str
    parts: tuple[str, ...]
    trained: tuple[str, ...]

    @property
    def joint(self) -> bool:
        """Whether things and stuff are joined to a panoptic result."""
        return "instance" in self.parts

    def __str__(self) -> str:
        return self.name


STAGES = {
    stage.name: stage
    for stage in (
        Stage("detector", parts=("detector",), trained=("detector",)),
        Stage("semantic", parts=("semantic",), trained=("semantic",)),
        Stage("instance_piecewise", parts=PARTS, trained=("instance",)),
        Stage("end_to_end", parts=PARTS, trained=("semantic", "instance")),
    )
}


def stage_named(name: str) -> Stage:
    """Return the row of the table.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in STAGES:
        raise ValueError(f"MODEL.WSIS.STAGE is {name!r}, expected one of {', '.join(STAGES)}")
    return STAGES[name]


def stage_of(cfg: Any) -> Stage:
    """Return a config's stage, one without name and parts where there is no WeakPanopticRCNN."""
    if cfg.MODEL.META_ARCHITECTURE != "WeakPanopticRCNN":
        return Stage("", parts=(), trained=())
    return stage_named(cfg.MODEL.WSIS.STAGE)
