# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Checkpoint files: read safely, written, and which weights go to which part of a network."""
