# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Self-contained HTML pages on labels and on runs."""
