# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Labels made with a network: cues of tags, predicted labels, rounds of training on them."""
