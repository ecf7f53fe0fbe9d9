"""The secrets of this process's environment, in every form in which text may hold them: no file of a run is written
with one, and logs and messages have a mask in its place.

A secret is a variable whose name matches a pattern of the run's `secrets`. Its value is looked for as it is, line by
line where it has several, and as JSON, YAML, Python, bash, Hydra and URLs escape it. Short values are words by
themselves: they count only where no letter, digit or '_' adjoins.
"""

import base64
import fnmatch
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO
from urllib.parse import quote, quote_plus

import yaml

PATTERNS = ("*_TOKEN", "*_KEY", "*SECRET*", "*PASSWORD*")
# Of messages, which may come before a run file is read: these, and those of every run that this process has read.
known = list(PATTERNS)
# Names that match a pattern and are none.
PUBLIC = ("TOKENIZERS_PARALLELISM",)
# Values that switch something, whatever the variable is called: HF_HUB_DISABLE_IMPLICIT_TOKEN=1.
SWITCHES = frozenset(("0", "1", "true", "false", "yes", "no", "on", "off", "none", "null"))
MASK = "***"
LONG = 8  # characters; a shorter value is looked for as a word
SHORTEST = 4  # a shorter one would mask step numbers and ordinary words: the launcher does not start with it
WORD = b"[A-Za-z0-9_]"
WORD_BOUND = 64  # characters at the end of a chunk that may still grow into a word


def is_secret(name: str, patterns: Iterable[str] = PATTERNS) -> bool:
    """Whether a variable is one; a pattern with '!' takes names out."""
    if name in PUBLIC:
        return False

    def matches(pattern: str) -> bool:
        return fnmatch.fnmatchcase(name.upper(), pattern.upper())

    return any(matches(item) for item in patterns if item[0] != "!") and not any(
        matches(item[1:]) for item in patterns if item[0] == "!"
    )


def _bash(text: str) -> Iterator[str]:
    """In quotes of each kind, bare with backslashes, and in $'...' as bash's own %q and `set -x` write it."""
    yield re.sub(r'([\\"$`])', r"\\\1", text)
    yield text.replace("'", "'\\''")
    yield re.sub(r"""([\s'"\\|&;()<>!{}*\[\]?^$`,])""", r"\\\1", text)
    yield re.sub(r"([^\w@%+=:,./-])", r"\\\1", text)
    names = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", "'": "\\'"}
    yield "".join(names.get(item, item) for item in text)
    octal = "".join(
        chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}" for byte in text.encode(errors="surrogateescape")
    )
    yield octal.replace("'", "\\'")


def _in_quotes(text: str) -> str:
    """As shlex.quote writes it, without the outer quotes."""
    return text.replace("'", "'\"'\"'")


def _once(text: str) -> Iterator[str]:
    """A text as one grammar or another writes it, without its outer quotes."""
    data = text.encode(errors="surrogateescape")
    yield text
    yield text.strip()
    for ascii_only in (True, False):
        yield json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        yield yaml.safe_dump(text, default_style='"', allow_unicode=not ascii_only, width=10**9).strip()[1:-1]
    yield text.replace("'", "''")  # YAML's single quotes
    for written in (repr(text), ascii(text), repr(data)[1:]):
        yield written[1:-1]
    yield text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")  # repr where both quotes are in the text
    yield _in_quotes(text)
    yield re.sub(r"([\\'])", r"\\\1", text)  # sbatch's quotes
    yield re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)  # Hydra's
    yield from _bash(text)
    yield quote(data, safe="")
    yield quote(data)
    yield quote_plus(data)
    yield base64.b64encode(data).decode()


def forms(value: str) -> set[str]:
    """Every form in which a value may be written, also one in another (JSON in a manifest's YAML), and its lines."""
    parts = {value, *(line.strip() for line in value.splitlines())}
    once = {form for part in parts if len(part) >= SHORTEST for form in _once(part)}
    twice = {again for form in once for again in (json.dumps(form)[1:-1], form.replace("'", "''"), _in_quotes(form))}
    return {form for form in once | twice if len(form) >= min(LONG, len(value))}


class Secrets:
    """The secrets of an environment by name; masks and finds them.

    Args:
        patterns: of their names.
        environ: default: this process's.
    """

    def __init__(self, patterns: Iterable[str] = PATTERNS, environ: Mapping[str, str] | None = None):
        patterns = tuple(patterns)
        environ = os.environ if environ is None else environ
        self.values = {
            name: value
            for name, value in environ.items()
            if value.strip() and value.strip().lower() not in SWITCHES and is_secret(name, patterns)
        }
        self._forms = {
            name: {form.encode(errors="surrogateescape") for form in forms(value)}
            for name, value in self.values.items()
            if len(value.strip()) >= SHORTEST
        }
        self.needles = sorted({form for found in self._forms.values() for form in found}, key=len, reverse=True)

    @property
    def too_short(self) -> list[str]:
        """Names of those that cannot be masked."""
        return sorted(name for name, value in self.values.items() if len(value.strip()) < SHORTEST)

    def mask(self, text: str) -> str:
        """The text with a mask in place of each secret."""
        return self.mask_bytes(text.encode(errors="surrogateescape")).decode(errors="surrogateescape")

    def mask_bytes(self, data: bytes) -> bytes:
        pattern = self.pattern_of(data)
        return pattern.sub(MASK.encode(), data) if pattern else data

    def pattern_of(self, data: bytes) -> "re.Pattern[bytes] | None":
        """What finds the secrets that the data holds; a search for each alone is much quicker than one for all."""
        return _pattern(needle for needle in self.needles if needle in data)

    def found_in(self, text: str) -> str | None:
        """The name of a secret that a text holds; None where it holds none. Where a writer of YAML has folded a long
        line, the break is taken out first."""
        variants = {text, " ".join(text.split()), re.sub(r"\\\n\s*\\?", "", text)}
        data = [item.encode(errors="surrogateescape") for item in variants]
        for name, found in self._forms.items():
            needles = found | {b" ".join(form.split()) for form in found}
            for item in data:
                pattern = _pattern(needle for needle in needles if needle in item)
                if pattern and pattern.search(item):
                    return name
        return None

    def stream(self) -> "Stream":
        return Stream(self)


def mask(text: str) -> str:
    """A message, with a mask in place of each secret that is known so far."""
    return Secrets(known).mask(text)


def _pattern(needles: Iterable[bytes]) -> "re.Pattern[bytes] | None":
    """What finds the longest of them first; short ones as words."""
    ordered = sorted((needle for needle in needles if needle), key=len, reverse=True)
    parts = [
        re.escape(item) if len(item) >= LONG else b"(?<!%s)%s(?!%s)" % (WORD, re.escape(item), WORD) for item in ordered
    ]
    return re.compile(b"|".join(parts)) if parts else None


class Stream:
    """Masks output that comes in pieces: what may be the beginning of a secret is held back until it is known."""

    def __init__(self, secrets: Secrets):
        self._secrets = secrets
        self._rest = b""
        self._before = b""  # the byte before the rest, which tells whether a short secret begins a word

    def feed(self, data: bytes) -> bytes:
        """What of the output so far can be shown."""
        data = self._rest + data
        cut = len(data) - self._held(data)
        if pattern := self._secrets.pattern_of(data):  # never through one
            cut = min([match.start() for match in pattern.finditer(data) if match.start() < cut < match.end()] + [cut])
        ready, self._rest = data[:cut], data[cut:]
        return self._show(ready)

    def end(self) -> bytes:
        """The rest, when nothing follows."""
        rest, self._rest = self._rest, b""
        return self._show(rest)

    def _show(self, data: bytes) -> bytes:
        if not data:
            return data
        masked = self._secrets.mask_bytes(self._before + data)[len(self._before) :]
        self._before = data[-1:]
        return masked

    def _held(self, data: bytes) -> int:
        """How many bytes at the end may belong to a secret that goes on in the next piece."""
        if not self._secrets.needles:
            return 0
        word = re.search(WORD + b"{1,%d}\\Z" % WORD_BOUND, data)
        held = len(word[0]) if word and len(self._secrets.needles[-1]) < LONG else 0
        for needle in self._secrets.needles:
            start = max(0, len(data) - len(needle) + 1)
            while (start := data.find(needle[:1], start, len(data) - held)) >= 0:
                if needle.startswith(data[start:]):
                    held = len(data) - start
                    break
                start += 1
        return held

    def copy(self, source: BinaryIO, target: BinaryIO) -> None:
        """All of a file."""
        while data := source.read(1 << 16):
            target.write(self.feed(data))
        target.write(self.end())
