# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""``wsis-d2://ID`` as a path, wherever Detectron2 takes one (``MODEL.WEIGHTS``).

Importing this registers it.
"""

from typing import IO, Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from wsis_d2.model_zoo.zoo import SCHEME, get_checkpoint_file, get_metadata_file

METADATA = "/metadata.json"


class ModelZooHandler(PathHandler):
    """Resolves ids of released models to checked local files.

    ``wsis-d2://ID`` is the checkpoint, ``wsis-d2://ID/metadata.json`` what its classes are.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [SCHEME]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        name = path[len(SCHEME) :]
        if name.endswith(METADATA):
            return get_metadata_file(name.removesuffix(METADATA))
        return get_checkpoint_file(name)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return True  # a missing release is named when it is opened

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return True

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        return open(self._get_local_path(path), mode, buffering=buffering)


PathManager.register_handler(ModelZooHandler(), allow_override=True)
