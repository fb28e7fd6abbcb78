# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What earlier labels say beside a prediction, when a round labels the training images anew.

Addition, not in the paper.
"""

import numpy as np

from wsis_d2.weak_labels.store import LabelStore


def class_factors(
    balance: float, labels: LabelStore, num_classes: int, trust: np.ndarray | None = None
) -> np.ndarray:
    """Return what a network's class probabilities are multiplied by, from what it learned from.

    Trained on labels of which a class has a small share, a network predicts it on a smaller one,
    and each round would lose more of it. Dividing by the share (to a power) is logit adjustment
    (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021). And a network repeats
    what its labels have too much of: a class that tags did not vouch for is held back.

    Args:
        balance: power of the classes' shares that probabilities are divided by; 0: not.
        labels: those that the network learned from; only the classes' shares are read.
        num_classes: number of classes.
        trust: (C,) float above 0, a factor of each class
            (:func:`wsis_d2.weak_labels.reliability.tag_reliability` to a power); None: none.

    Returns:
        (C,) float32, above 0. Of a class without labels the network knows nothing: what it says
        of it is not raised.
    """
    counts = np.zeros(256, np.int64)
    if balance:
        for image_id in labels.image_ids():
            counts += np.bincount(labels.semantic(image_id).ravel(), minlength=256)
    counts = counts[:num_classes]
    shares = np.maximum(counts, 1) / max(counts.sum(), 1)
    factors = np.where(counts > 0, shares**-balance, 1.0)
    return (factors if trust is None else factors * trust).astype(np.float32)
