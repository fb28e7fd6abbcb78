# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Errors, files, images, processes and command lines."""
