# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What earlier labels say beside a prediction, when a round labels the training images anew.

Addition, not in the paper.
"""

import numpy as np

from wsis_d2.structures.labels import IGNORE
from wsis_d2.weak_labels.store import LabelStore


class LabelPrior:
    """Factors of a network's class probabilities, from the labels of earlier rounds.

    Trained on labels of which a class has a small share, a network predicts it on a smaller one,
    and each round would lose more of it. Dividing by the share (to a power) is logit adjustment
    (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021). Round 0's labels
    vote, because cues know of places where the network has learnt nothing. And a network repeats
    what its labels have too much of: a class that tags did not vouch for is held back.

    Args:
        balance: power of the classes' shares that probabilities are divided by; 0: not.
        vote: factor of the class that round 0 gave a pixel; 1: none.
        last: the labels that the network learned from; only their shares are read.
        first: the labels of round 0.
        num_classes: number of classes.
        trust: (C,) float above 0, a factor of each class
            (:func:`wsis_d2.weak_labels.reliability.tag_reliability` to a power); None: none.
    """

    def __init__(
        self,
        balance: float,
        vote: float,
        last: LabelStore,
        first: LabelStore,
        num_classes: int,
        trust: np.ndarray | None = None,
    ) -> None:
        self.vote = vote
        self.first = first
        counts = np.zeros(256, np.int64)
        if balance:
            for image_id in last.image_ids():
                counts += np.bincount(last.semantic(image_id).ravel(), minlength=256)
        counts = counts[:num_classes]
        shares = np.maximum(counts, 1) / max(counts.sum(), 1)
        # Of a class without labels the network knows nothing: what it says of it is not raised.
        self.scale = np.where(counts > 0, shares**-balance, 1.0).astype(np.float32)
        if trust is not None:
            self.scale *= trust.astype(np.float32)

    def factors(self, image_id: int | str) -> np.ndarray:
        """Return the factors of one image's probabilities, (C, H, W) float32, above 0.

        Raises:
            InputError: round 0 has no label of the image.
        """
        label = self.first.semantic(image_id)
        result = np.repeat(self.scale[:, None], label.size, axis=1).reshape(-1, *label.shape)
        if self.vote != 1:
            rows, columns = np.nonzero(label != IGNORE)
            result[label[rows, columns], rows, columns] *= self.vote
        return result
