"""The one error of this package: bad input, told so that a person can mend it."""


class DataError(ValueError):
    """The source, a row or an option is wrong; the message says which and what to do."""
