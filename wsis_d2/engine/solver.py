# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Optimiser and schedule: learning rates by part of the model, poly and Detectron2's decays."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_detectron2_scheduler
from detectron2.solver.build import maybe_add_gradient_clipping
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from torch import nn

from wsis_d2.utils.errors import InputError

POLY_POWER = 0.9
"""Power of "WarmupPolyLR", PSPNet's."""
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict]:
    """Group a model's trained parameters by learning rate and weight decay.

    A model may have ``parameter_rules()``: (name prefix, factor of the learning rate, weight
    decay or None), of which the first that fits a parameter holds. Norms have
    SOLVER.WEIGHT_DECAY_NORM, biases SOLVER.BIAS_LR_FACTOR and WEIGHT_DECAY_BIAS as in Detectron2.
    """
    rules = model.parameter_rules() if hasattr(model, "parameter_rules") else []
    solver = cfg.SOLVER
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            full_name = f"{module_name}.{name}" if module_name else name
            rate, decay = solver.BASE_LR, solver.WEIGHT_DECAY
            if isinstance(module, _NORMS):
                decay = solver.WEIGHT_DECAY_NORM
            elif name == "bias":
                rate *= solver.BIAS_LR_FACTOR
                if solver.WEIGHT_DECAY_BIAS is not None:
                    decay = solver.WEIGHT_DECAY_BIAS
            for prefix, factor, own_decay in rules:
                if full_name.startswith(prefix):
                    rate *= factor
                    decay = decay if own_decay is None else own_decay
                    break
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": members, "lr": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SOLVER.OPTIMIZER over :func:`parameter_groups`, with SOLVER.CLIP_GRADIENTS.

    CLIP_TYPE may be "full_model" (the norm of all gradients together) beside Detectron2's types.

    Raises:
        InputError: nothing in the model is trained, or an unknown optimiser.
    """
    groups = parameter_groups(cfg, model)
    if not groups:
        raise InputError(
            "nothing to train: no parameter of the model is free in this stage (an instance stage "
            "with a head without parameters?); use --eval-only"
        )
    solver, clip = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
    if solver.OPTIMIZER == "SGD":
        kind = torch.optim.SGD
        options = {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    elif solver.OPTIMIZER == "AdamW":
        kind, options = torch.optim.AdamW, {}
    else:
        raise InputError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}, expected 'SGD' or 'AdamW'")
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        limits = {"max_norm": clip.CLIP_VALUE, "norm_type": clip.NORM_TYPE}
        kind = type(f"Clipped{kind.__name__}", (_FullModelClipping, kind), limits)
    else:
        kind = maybe_add_gradient_clipping(cfg, kind)
    return kind(groups, lr=solver.BASE_LR, **options)


class _FullModelClipping(torch.optim.Optimizer):
    """Before each step, scales all gradients together so that their norm is at most max_norm."""

    max_norm: float
    norm_type: float

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.max_norm, norm_type=self.norm_type)
        return super().step(closure)


def build_lr_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule named by SOLVER.LR_SCHEDULER_NAME: "WarmupPolyLR" or one of Detectron2's.

    Raises:
        InputError: there is none of that name.
    """
    if cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupPolyLR":
        try:
            return build_detectron2_scheduler(cfg, optimizer)
        except ValueError as error:
            raise InputError(
                f"SOLVER.LR_SCHEDULER_NAME is {cfg.SOLVER.LR_SCHEDULER_NAME!r} ({error}); expected "
                "'WarmupPolyLR', 'WarmupMultiStepLR' or 'WarmupCosineLR'"
            ) from error
    schedule = WarmupParamScheduler(
        PolynomialDecayParamScheduler(1.0, POLY_POWER),
        cfg.SOLVER.WARMUP_FACTOR,
        min(cfg.SOLVER.WARMUP_ITERS / cfg.SOLVER.MAX_ITER, 1.0),
        cfg.SOLVER.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=cfg.SOLVER.MAX_ITER)
