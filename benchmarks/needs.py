"""What a script here says where a package is not installed, in place of a traceback."""

import sys
from contextlib import contextmanager


@contextmanager
def needs_packages():
    """For the imports of a script: the program ends with a sentence and status 1 where one of them fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is not installed; in the project's folder: pip install -e '.[dev]'")
