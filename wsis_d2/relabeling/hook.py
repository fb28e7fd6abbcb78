# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""New labels while training: the iteration of paper 3.4 inside one run of the trainer.

Addition, not in the paper, which trains each round to its end before it labels anew (4.3).
"""

import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from torch import distributed, nn

from wsis_d2.data.datasets import set_label_store
from wsis_d2.data.loader import build_train_loader
from wsis_d2.engine.trainer import TRAINER_HOOK_REGISTRY
from wsis_d2.relabeling.earlier_labels import check_refinement
from wsis_d2.relabeling.identity import config_fingerprint
from wsis_d2.relabeling.round_labels import first_stores, relabel
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.store import LabelStore

logger = logging.getLogger(__name__)


class RelabelHook(HookBase):
    """Every ``period`` iterations, label the weak training images anew and train on that.

    The labels of the n-th time are the store ``OUTPUT_DIR/labels/NNN_DATASET``. They are made from
    the live model, so a resumed run makes the same ones: what is there stays, the rest is added.

    Args:
        cfg: the run's config; ``DATASETS.TRAIN`` has weak sets with label stores.
        period: iterations between two sets of labels, at least 1.
    """

    def __init__(self, cfg: CfgNode, period: int) -> None:
        if period < 1:
            raise InputError(f"ITERATIVE.PERIOD is {period}, expected 0 (off) or more")
        self.cfg = cfg
        self.period = period
        self.first_stores = first_stores(cfg)
        self.names = list(self.first_stores)
        check_refinement(cfg, self.first_stores)
        hashes = {
            name: LabelStore.open(path).recipe_hash for name, path in self.first_stores.items()
        }
        self.lineage = config_fingerprint(cfg, hashes)

    def store(self, number: int, name: str) -> Path:
        """The labels of one dataset made the ``number``-th time."""
        return Path(self.cfg.OUTPUT_DIR) / "labels" / f"{number:03d}_{name}"

    def before_train(self) -> None:
        """Go on with the labels that a resumed run was at."""
        number = self.trainer.start_iter // self.period
        if number == 0:
            return
        at_labels = self.trainer.start_iter % self.period == 0
        for name in self.names if not at_labels else ():
            path = self.store(number, name)
            if LabelStore.open(path).manifest.get("state") != "closed":
                raise InputError(
                    f"{path}: is not complete, and training went on after it; start over in "
                    "another OUTPUT_DIR"
                )
        self._use(number, make=at_labels)

    def after_step(self) -> None:
        """Make new labels when it is time; not after the last iteration."""
        done = self.trainer.iter + 1
        if done % self.period == 0 and done < self.trainer.max_iter:
            self._use(done // self.period, make=True)

    def _use(self, number: int, make: bool) -> None:
        if make:
            logger.info("new labels, number %d", number)
            share_buffers(self.trainer._plain_model)
            for name in self.names:
                relabel(
                    self.cfg,
                    name,
                    self.store(number, name),
                    round_number=number,
                    first_store=self.first_stores[name],
                    last_store=self.store(number - 1, name) if number > 1 else None,
                    lineage=self.lineage,
                    model=self.trainer._plain_model,
                )
        for name in self.names:
            set_label_store(name, self.store(number, name))
        trainer = self.trainer
        done = number * self.period if make else trainer.start_iter
        trainer.data_loader = build_train_loader(self.cfg, seed=trainer.seed, start_iter=done)
        trainer._batches = iter(trainer.data_loader)

    def after_train(self) -> None:
        """Leave the datasets as they were found."""
        for name, path in self.first_stores.items():
            set_label_store(name, path)


def share_buffers(model: nn.Module) -> None:
    """Give all processes the main one's buffers, so that they predict alike.

    Batch norms that learn count statistics of their own in each process; a checkpoint keeps the
    main one's.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


@TRAINER_HOOK_REGISTRY.register()
def build_relabel_hook(cfg: CfgNode) -> RelabelHook | None:
    """Return the hook that ``ITERATIVE.PERIOD`` asks for, None if it is 0."""
    return RelabelHook(cfg, cfg.ITERATIVE.PERIOD) if cfg.ITERATIVE.PERIOD else None
