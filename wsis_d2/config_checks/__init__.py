# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What a config cannot ask for: one line that names the key."""
