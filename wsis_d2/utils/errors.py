# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The one exception a user is meant to read."""


class InputError(ValueError):
    """Input that cannot be used: a file, a record, an argument or a config key.

    The message names the thing at fault, what was found, what was expected and, where there is
    one, the command that corrects it. Tools print it as one line and exit with status 2
    (:func:`wsis_d2.utils.cli.main_with_errors`).
    """
