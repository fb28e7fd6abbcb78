# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The embedded sample: drawn scenes with exact labels."""
