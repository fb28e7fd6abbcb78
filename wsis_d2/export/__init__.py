# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A whole network as one file, by torch.export."""
