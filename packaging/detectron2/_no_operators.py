# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Stands in for ``detectron2._C`` where the compiled operators are not built."""


class _NoOperators:
    """Raises ImportError when an operator is used, naming it and what to do."""

    def __getattr__(self, name):
        raise ImportError(
            f"detectron2._C.{name}: this build of Detectron2 has no compiled operators "
            "(deformable convolution, rotated boxes, fast COCO evaluation). "
            "Install Detectron2 from a full source checkout to use it."
        )


_C = _NoOperators()
