# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Checks of a config: impossible or unused settings are errors that name the key."""
