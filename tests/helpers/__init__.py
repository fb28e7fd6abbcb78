# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What several tests share: small data, hand-written metrics, loaded tools."""
