# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Datasets, importers of annotation formats, mappers and loaders."""
