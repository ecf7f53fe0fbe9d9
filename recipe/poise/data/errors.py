"""The one error of this package: bad input, told so that a person can mend it."""


class DataError(ValueError):
    """The source, a row or an option is wrong; the message says which and what to do."""


def first_line(error: BaseException) -> str:
    """A library's error in a line: its kind, and the first line that says something."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def told(error: OSError) -> str:
    """What the system refused, as a sentence; what this project's own code says in an OSError stays as it is."""
    if error.errno is None:
        return str(error) or first_line(error)
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror}. Mend the path, its permissions, or the room on the disk"
