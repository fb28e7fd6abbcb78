# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Weights from a file into a network: names, and which part each file fills."""
