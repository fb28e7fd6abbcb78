# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A run's checkpoints: written whole, found again after any kill, read back safely."""

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from wsis_d2.checkpoint.coverage import load_into
from wsis_d2.checkpoint.reader import load_file, model_state, read_checkpoint
from wsis_d2.utils.errors import InputError, os_reason
from wsis_d2.utils.files import atomic_write, list_files

logger = logging.getLogger(__name__)


class RunCheckpointer(DetectionCheckpointer):
    """Writes a run's checkpoints whole or not at all, and finds the one to continue from.

    Reading runs no code that a file may carry and loads no half of a model.
    """

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

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``NAME.pth`` and name it in ``last_checkpoint``.

        Args:
            name: without ``.pth``.
            kwargs: saved beside model and trainer.

        Raises:
            InputError: the file cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: part.state_dict() for key, part in self.checkpointables.items()})
        data.update(kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        try:
            with atomic_write(path) as file:
                torch.save(data, file)
            self.tag_last_checkpoint(path.name)
        except (OSError, RuntimeError) as error:
            # torch raises an error of its own over one of the file's.
            cause = error if isinstance(error, OSError) else error.__context__
            at_fault, reason = path, str(error)
            if isinstance(cause, OSError):
                at_fault, reason = cause.filename or path, os_reason(cause)
            reason = " ".join(reason.split())[:160]
            raise InputError(
                f"{at_fault}: cannot be written: {reason}; --resume continues the run"
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write ``last_checkpoint``, whole."""
        with atomic_write(Path(self.save_dir) / "last_checkpoint") as file:
            file.write(last_filename_basename.encode())

    def find_last(self) -> tuple[Path, dict] | None:
        """Return the run's last checkpoint and what it holds; None where there is none.

        A kill between the two files that are written leaves a whole checkpoint without its name;
        older versions could leave half a one. The newest whole one is taken then.

        Raises:
            InputError: the named checkpoint is missing or cannot be read.
            OSError: there is one that the system does not let be read: an older one, or none,
                would be continued from instead.
        """
        folder = Path(self.save_dir)
        tag = folder / "last_checkpoint"
        name = tag.read_text(errors="replace").strip() if tag.is_file() else ""
        if "\0" in name or Path(name).name != name or name == "..":
            raise InputError(f"{tag}: names {name!r:.100}, expected a file of this folder")
        if name and (folder / name).is_file():
            return folder / name, read_checkpoint(folder / name)
        saved = sorted(
            list_files(folder, "model_*.pth"), key=lambda path: path.stat().st_mtime, reverse=True
        )
        for path in saved:
            try:
                content = read_checkpoint(path)
            except InputError as error:
                logger.warning("%s; passed over", error)
                continue
            if "trainer" in content:
                return path, content
        if name:
            raise InputError(
                f"{tag}: names {name}, which does not exist, and there is no other checkpoint; "
                f"restore it, or delete {tag.name} to start over"
            )
        return None
