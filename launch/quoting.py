"""How a value is written in each grammar that the launcher writes, and which names need no quotes in any of them.

Every value that comes from a run file goes through one of these on its way into a file or a command.
"""

import re
import shlex
from typing import Any

# Variables that bash does not let anyone set, or that mean something else to it.
BASH_OWN = frozenset(
    "BASHOPTS BASH_ENV BASH_VERSINFO DIRSTACK ENV EUID FUNCNAME GROUPS IFS LINENO PPID RANDOM SECONDS SHELLOPTS "
    "UID".split()
)
WORDS = ("true", "false", "null", "none", "nan", "inf")  # Hydra would read them as something else
HYDRA_PLAIN = re.compile(r"[A-Za-z_/.][A-Za-z0-9_./:@+-]*")
HYDRA_KEY = re.compile(r"[A-Za-z_][\w.@/-]*", re.ASCII)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Line breaks of any kind, and what a terminal would act on.
CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


def shell(value: object) -> str:
    """One word of bash, whatever it holds."""
    return shlex.quote(str(value))


def sbatch(option: str) -> str:
    """An option of an ``#SBATCH`` line. sbatch reads quotes as bash does, but a backslash escapes inside them too, a
    ``#`` begins a comment, and it blanks the word packjob."""
    name, equals, value = option.partition("=")
    if re.fullmatch(r"[\w@%+:,./=-]*", value, re.ASCII):
        quoted = value
    else:
        quoted = "'" + re.sub(r"([\\'])", r"\\\1", value) + "'"
    return name + equals + re.sub("(?i)(pack)(job)", r"\1\\\2", quoted)


def hydra(value: Any) -> str:
    """A value in the grammar of Hydra's overrides. A string that is one interpolation stays one.

    Raises:
        ValueError: a mapping's key that the grammar cannot hold.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(hydra(item) for item in value)}]"
    if isinstance(value, dict):
        for key in value:
            if not HYDRA_KEY.fullmatch(str(key)):
                raise ValueError(f"the key {key!r}: use letters, digits, '_', '.', '/', '@' and '-', a letter first")
        return "{" + ",".join(f"{key}:{hydra(item)}" for key, item in value.items()) + "}"
    text = str(value)
    if (HYDRA_PLAIN.fullmatch(text) and text.lower() not in WORDS) or re.fullmatch(r"\$\{[\w.:,/-]+\}", text):
        return text
    # in quotes only a quote, and backslashes before one, need a backslash
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"


def kubernetes(value: str) -> str:
    """The value of a container's variable: there ``$(NAME)`` is another variable, and ``$$`` a dollar."""
    return value.replace("$", "$$")


def check_variable(name: str) -> str:
    """A name of an environment variable that a script may export.

    Raises:
        ValueError: it is none, or bash's own.
    """
    if not VARIABLE.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a variable: use letters, digits and '_', not a digit first")
    if name in BASH_OWN:
        raise ValueError(f"{name} is a variable of bash itself: it cannot be set for a run")
    return name


def check_line(value: str) -> str:
    """Text that goes on one line.

    Raises:
        ValueError: it holds a line break or another control character.
    """
    if found := CONTROL.search(value):
        raise ValueError(f"has a line break or control character ({found[0]!r}): take it out")
    return value


def check_word(value: str) -> str:
    """Text that a program reads as one word and not as an option.

    Raises:
        ValueError: it is empty, begins with '-', or holds blanks or control characters.
    """
    check_line(value)
    if not value or value[0] == "-" or re.search(r"\s", value):
        raise ValueError("use a word without blanks that does not begin with '-'")
    return value
