# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The trainer of every stage: Detectron2's loop, hooks and checkpoints, made repeatable."""

import logging
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from torch import nn

from wsis_d2.checkpoint.checkpointer import RunCheckpointer
from wsis_d2.checkpoint.coverage import load_into
from wsis_d2.checkpoint.reader import model_state
from wsis_d2.checkpoint.start import load_for_training
from wsis_d2.config import read_config
from wsis_d2.config_checks.runs import check_trainable
from wsis_d2.config_checks.unused import check_used
from wsis_d2.data.loader import build_test_loader, build_train_loader, compare_with_tests
from wsis_d2.data.records import load_records
from wsis_d2.engine.launch import lost_a_process
from wsis_d2.engine.picture_hook import build_picture_hook
from wsis_d2.engine.resume import (
    data_identity,
    refuse_other_data,
    refuse_other_training,
    training_identity,
)
from wsis_d2.engine.run_results import verify, write_results
from wsis_d2.engine.solver import build_lr_scheduler, build_optimizer
from wsis_d2.evaluation import build_evaluator
from wsis_d2.evaluation.results import copy_paste_rows
from wsis_d2.evaluation.true_parts import with_true_parts
from wsis_d2.modeling.build import build_model
from wsis_d2.modeling.precision import amp_dtype
from wsis_d2.utils.cli import error_line
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import remove_dead_temporaries

logger = logging.getLogger(__name__)


def _is_no_input_error(record: logging.LogRecord) -> bool:
    """Whether a log record tells of something else than input that cannot be used.

    Or than another process's end, which that process tells of.
    """
    error = record.exc_info[1] if record.exc_info else None
    return error is None or (error_line(error) is None and not lost_a_process(error))


# TrainerBase logs the traceback of whatever ends a training; users' mistakes are told in one line.
logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_input_error)


class _EvalHook(hooks.EvalHook):
    """Evaluates after a training that came to its end, whatever iteration another ended in.

    Detectron2's evaluates one that failed in its last iteration too: where one of several processes
    failed, it waits for others that wait for it.
    """

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()


class WSISTrainer(TrainerBase):
    """Trains the model of a config.

    Random numbers are drawn anew for each iteration from the seed, the iteration and the process,
    and samples are a function of seed and position
    (:class:`wsis_d2.data.sampling.TrainingStream`), so that a resumed run computes exactly what
    an uninterrupted one would.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: a frozen config, completed by :func:`wsis_d2.engine.load_cfg`.

        Raises:
            InputError: a config that cannot be trained.
        """
        super().__init__()
        check_trainable(cfg)
        check_used(cfg, read_config())
        world_size = comm.get_world_size()
        if world_size > 1 and (cfg.MODEL.DEVICE != "cuda") == torch.cuda.is_available():
            raise InputError(
                f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r} with {world_size} processes: each takes a "
                "GPU of its own ('cuda'), or all the CPU where none is visible "
                "(CUDA_VISIBLE_DEVICES='')"
            )
        # Before scaling: a run may be continued by another number of processes.
        self.identity = training_identity(cfg)
        self._begun: tuple[Path, dict] | None = None  # the checkpoint and the data it was made of
        try:
            cfg = DefaultTrainer.auto_scale_workers(cfg, world_size)
        except AssertionError:
            raise InputError(
                f"SOLVER.REFERENCE_WORLD_SIZE is {cfg.SOLVER.REFERENCE_WORLD_SIZE}, expected a "
                f"divisor of SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}"
            ) from None
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
        self.cfg = cfg
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed() % 2**31
        seed_all_rng(self.seed)
        self.max_iter = cfg.SOLVER.MAX_ITER
        try:
            model = build_model(cfg)
            self.optimizer = build_optimizer(cfg, model)
            self.scheduler = build_lr_scheduler(cfg, self.optimizer)
            scaled = amp_dtype(cfg) is torch.float16
        except ValueError as error:
            raise InputError(str(error)) from error
        self._tested: dict[str, list[str]] = {}
        for name in cfg.DATASETS.TEST:  # what cannot be evaluated is told before it is trained for
            self._tested[name] = [record["file_name"] for record in load_records([name])]
            self.build_evaluator(cfg, name, cfg.OUTPUT_DIR)
            with_true_parts(cfg, model, name)
        self._plain_model = model
        self.scaler = torch.amp.GradScaler(torch.device(cfg.MODEL.DEVICE).type, enabled=scaled)
        on_cpu = cfg.MODEL.DEVICE == "cpu"
        self.model = create_ddp_model(
            model, broadcast_buffers=False, **({"device_ids": None} if on_cpu else {})
        )
        self.checkpointer = RunCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.data_loader = None
        self._batches: Iterator | None = None
        self.last_batch: list[dict] = []
        self._seconds = 0.0
        self._last_eval_results: dict = {}
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[hooks.HookBase | None]:
        """Timer, schedule, checkpoints, evaluation and writers, in Detectron2's order."""
        cfg = self.cfg
        main = comm.is_main_process()

        def evaluate() -> dict:
            self._last_eval_results = self.test(cfg, self._plain_model, seconds=self._seconds)
            return self._last_eval_results

        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(self.optimizer, self.scheduler),
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
            if main
            else None,
            _EvalHook(cfg.TEST.EVAL_PERIOD, evaluate) if cfg.DATASETS.TEST else None,
            build_picture_hook(cfg, self._plain_model) if main else None,
            hooks.PeriodicWriter(self.build_writers(), period=20) if main else None,
        ]

    def build_writers(self) -> list:
        """Console, metrics.json and TensorBoard."""
        folder = self.cfg.OUTPUT_DIR
        os.makedirs(folder, exist_ok=True)
        return [
            CommonMetricPrinter(self.max_iter),
            JSONWriter(os.path.join(folder, "metrics.json")),
            TensorboardXWriter(folder),
        ]

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from OUTPUT_DIR's last checkpoint, or load the weights the config names.

        Args:
            resume: continue if there is a checkpoint; iteration, optimiser, schedule, sampler
                position and random state go on from it.

        Raises:
            InputError: the checkpoint was trained with other settings or labels, has gone further
                than SOLVER.MAX_ITER, is missing or cannot be read.
        """
        if comm.is_main_process():
            remove_dead_temporaries(Path(self.cfg.OUTPUT_DIR))
        found = self.checkpointer.find_last() if resume else None
        if found is None:
            if resume and os.path.exists(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")):
                logger.warning(
                    "%s: the run ended before its first checkpoint was complete; it starts over",
                    self.cfg.OUTPUT_DIR,
                )
            load_for_training(self.cfg, self._plain_model)
            return
        path, saved = found
        try:
            begun = saved.get("trainer", {}).get("identity")
            if begun is not None:
                refuse_other_training(path, begun, self.identity)
                self._begun = path, begun.get("data", {})
            load_into(
                self._plain_model,
                model_state(saved, path),
                source=str(path),
                hint="continue the run with the config that it was begun with",
            )
            self.load_state_dict(saved["trainer"])
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(
                f"{path}: does not continue with this config's model and optimiser ({reason}); "
                "continue with the config it was trained with, or start from its weights in "
                "another OUTPUT_DIR: MODEL.WEIGHTS"
            ) from error
        self.start_iter = self.iter + 1
        logger.info("Resumed from %s at iteration %d", path, self.start_iter)
        if self.start_iter > self.max_iter:
            raise InputError(
                f"{path}: {self.start_iter} iterations are done, SOLVER.MAX_ITER is "
                f"{self.max_iter}; raise it to train on"
            )

    def train(self) -> dict:
        """Train until SOLVER.MAX_ITER; returns the last evaluation's results.

        Raises:
            InputError: a sample, loss or gradient that cannot be used, or data that are not those
                of the checkpoint.
            SystemExit: the results are not TEST.EXPECTED_RESULTS.
        """
        loader = build_train_loader(self.cfg, seed=self.seed, start_iter=self.start_iter)
        self.identity["data"] = data_identity(self.cfg, loader.dataset.records)
        if self._begun is not None:
            refuse_other_data(*self._begun, self.identity["data"])
        compare_with_tests(loader.dataset.records, self._tested)
        self.data_loader, self._batches = loader, iter(loader)
        self.model.train()
        super().train(self.start_iter, self.max_iter)
        if comm.is_main_process():
            verify(self.cfg, self._last_eval_results)
        return self._last_eval_results

    def before_step(self) -> None:
        """Draw the iteration's own random state."""
        super().before_step()
        state = np.random.SeedSequence([self.seed, self.iter, comm.get_rank()])
        seed_all_rng(int(state.generate_state(1)[0]))

    def run_step(self) -> None:
        """One iteration: batch, losses, gradients, update."""
        start = time.perf_counter()
        self.model.train()
        batch = self.last_batch = next(self._batches)
        data_time = time.perf_counter() - start
        losses = self.model(batch)
        # One read from the device for all losses.
        numbers = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
        values = dict(zip(losses, numbers, strict=True))
        self._refuse_not_finite(
            [f"{name} is {value}" for name, value in values.items() if not np.isfinite(value)],
            batch,
        )
        self.optimizer.zero_grad()
        self.scaler.scale(sum(losses.values())).backward()
        self.scaler.unscale_(self.optimizer)
        # Before the update: a checkpoint must never hold weights that a bad gradient has spoilt.
        # With float16, whose scaled gradients may overflow, the scaler leaves the update out and
        # takes a smaller scale; only where even 1 is too much is something wrong.
        if not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            self._refuse_bad_gradients(batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._seconds += time.perf_counter() - start
        self._write_losses(values, data_time)

    def _refuse_bad_gradients(self, batch: list[dict]) -> None:
        sums = [
            p.grad.detach().float().sum() for p in self.model.parameters() if p.grad is not None
        ]
        if sums and not bool(torch.isfinite(torch.stack(sums)).all()):
            names = [
                f"the gradient of {name} is not finite"
                for name, p in self._plain_model.named_parameters()
                if p.grad is not None and not bool(torch.isfinite(p.grad).all())
            ]
            self._refuse_not_finite(names[:1], batch)

    def _refuse_not_finite(self, wrong: list[str], batch: list[dict]) -> None:
        """Stop training where something is not finite, naming it and the images.

        Raises:
            InputError: ``wrong`` is not empty.
        """
        if not wrong:
            return
        files = ", ".join(str(sample.get("file_name")) for sample in batch)
        raise InputError(
            f"{'; '.join(wrong)} at iteration {self.iter}, images {files}; lower "
            "SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS or set SOLVER.CLIP_GRADIENTS.ENABLED"
        )

    def _write_losses(self, values: dict[str, float], data_time: float) -> None:
        gathered = comm.gather({**values, "data_time": data_time})
        if not comm.is_main_process():
            return
        self.storage.put_scalar("data_time", max(entry.pop("data_time") for entry in gathered))
        means = {name: float(np.mean([entry[name] for entry in gathered])) for name in values}
        self.storage.put_scalar("total_loss", sum(means.values()))
        if len(means) > 1:
            self.storage.put_scalars(**means)

    def state_dict(self) -> dict:
        """What a checkpoint holds beside the model."""
        return {
            **super().state_dict(),
            "identity": self.identity,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "seed": self.seed,
            "seconds": self._seconds,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over a checkpoint's state; its seed holds unless the config names one."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state_dict["scaler"])
        self._seconds = state_dict["seconds"]
        if self.cfg.SEED < 0:
            self.seed = state_dict["seed"]

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, folder: str) -> DatasetEvaluator:
        """The evaluators of a dataset for what the model gives."""
        return build_evaluator(cfg, dataset_name, folder)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Sequence[DatasetEvaluator] | None = None,
        *,
        seconds: float | None = None,
    ) -> dict:
        """Evaluate on every set of DATASETS.TEST.

        Args:
            cfg: the config.
            model: the model.
            evaluators: one for each set; default :meth:`build_evaluator`.
            seconds: training time, for results.json.

        Returns:
            The results of the one set, or by the sets' names. Rows to copy are logged, and the
            main process writes OUTPUT_DIR/results.json.
        """
        results = {}
        for index, name in enumerate(cfg.DATASETS.TEST):
            loader = build_test_loader(cfg, name)
            folder = os.path.join(cfg.OUTPUT_DIR, "inference", name)
            evaluator = evaluators[index] if evaluators else cls.build_evaluator(cfg, name, folder)
            tested = with_true_parts(cfg, model, name)
            results[name] = inference_on_dataset(tested, loader, evaluator) or {}
            if not comm.is_main_process():
                continue
            logger.info("Results on %s:", name)
            for row in copy_paste_rows(results[name]):
                logger.info(row)
            if not results[name]:
                logger.warning(
                    "%s: the set has no truth, so nothing is measured; predictions are in %s",
                    name, folder,
                )  # fmt: skip
            else:
                write_results(cfg, name, results[name], seconds)
        return results[cfg.DATASETS.TEST[0]] if len(results) == 1 else results
