# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The training checkpoint: written by Detectron2's checkpointer, read back whole and safely."""

from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

from wsis_d2.checkpoint.coverage import load_into
from wsis_d2.checkpoint.reader import load_file, model_state


class SafeCheckpointer(DetectionCheckpointer):
    """Saves and continues a run: runs no code that a file may carry, loads no half of a model."""

    _source = "the checkpoint"

    def _load_file(self, filename: str) -> dict[str, Any]:
        self._source = filename
        return load_file(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        arrays = model_state({"model": checkpoint.pop("model")}, self._source)
        load_into(
            self.model, arrays, source=self._source,
            hint="continue the run with the config that it was begun with",
        )  # fmt: skip
