# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Own data: the format of weak annotation, its registration and its truth."""
