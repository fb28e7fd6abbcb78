# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Contour strength of an image: how likely a pixel lies on the outline of something."""

import cv2
import numpy as np


def gradient_contours(lab: np.ndarray) -> np.ndarray:
    """Contours without learned weights: the colour gradient over two widths.

    Args:
        lab: (H, W, 3) float32, CIE Lab.

    Returns:
        (H, W) float32 in [0, 1].
    """
    strength = np.zeros(lab.shape[:2], np.float32)
    for sigma in (1.0, 2.0):
        smooth = cv2.GaussianBlur(lab, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        dx = cv2.Scharr(smooth, cv2.CV_32F, 1, 0, scale=1 / 32)
        dy = cv2.Scharr(smooth, cv2.CV_32F, 0, 1, scale=1 / 32)
        strength += sigma * np.sqrt((dx**2 + dy**2).sum(axis=2))
    return strength / (strength + 15.0)


def to_lab(image: np.ndarray) -> np.ndarray:
    """Return an image, (H, W, 3) uint8 BGR, as CIE Lab, float32."""
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_BGR2LAB)
