r"""What an answer names: its values, each with its label and unit, and nothing left over.

A hedge (``3 (or maybe 4)``, ``1 or 2``, ``not 3``) has no reading as the one value that is asked for. Answers are
read strictly, so that whatever is not understood is wrong and not half of it right; see `reward.math_judge`.
"""

import re
from collections.abc import Set
from dataclasses import dataclass
from fractions import Fraction

from reward.math_units import FUNCTIONS, HEDGES, Unit, unit_of

MAX_DEPTH = 16  # of brackets; math-verify's parser takes twice as long for each further pair or two
MAX_VALUES = 12  # of a list that is compared one by one
WORD = "\ue000"  # stands before each word that was text in the source

_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox|operatorname|rm|bf)\s?\{([^{}]*)\}")
_FONT = re.compile(r"\\(?:mathbf|boldsymbol|mathit|displaystyle|textstyle|boxed|fbox|limits)(?![A-Za-z])\s?")
_SPACE = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])|(?<!\\)\\[,:; ]|(?<!\\)~")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])|(?<![\d.])(?<!\d )\d{1,3}(?: \d{3})+(?![\d ]*\d)")
_MIXED = re.compile(
    r"(?<![\d.}])(\d+)(?:\s+|\s*(?=\\))"
    r"(?:(\d+)\s?/\s?(\d+)|\\[dt]?frac\s?(?:(\d)\s?(\d)|\{(\d+)\}\s?\{(\d+)\}))(?!\d|\.\d)"
)
_SCIENTIFIC = re.compile(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![A-Za-z\d.])")
_REPEATING = re.compile(r"(?<![\d.])(\d{0,20})\.(\d{0,20})\\(?:overline|bar|dot)\s?\{?(\d{1,20})\}?(?!\d)")
_MODULUS = re.compile(r"[\s(]*\\?(?:pmod|bmod|mod)\s*\{?\s*(\d+)\s*\}?\s*\)?$")
_BASE = re.compile(r"(?<=\d)_\{?(\d+|\\text\{[a-z]+\})\}?$")
_SEPARATOR = re.compile(
    r"[,;&]|\\\\|\\(?:quad|qquad|lor|land|vee|wedge)(?![A-Za-z])"
    rf"|,?\s*(?<![A-Za-z\\]){WORD}?(?:or|and)(?![A-Za-z])"
)
_RELATION = re.compile(
    r"\\(?:approx|simeq|approxeq|sim)(?![A-Za-z])|\\(?:equiv|in|neq?|leq?|geq?|leqslant|geqslant|lt|gt|to|rightarrow"
    r"|Rightarrow|implies|iff|colon)(?![A-Za-z])|:=|!=|[<>]=?|="
)
_SAME, _NEAR = ("=", ":=", r"\equiv", r"\in"), (r"\approx", r"\simeq", r"\approxeq", r"\sim")
_TOKEN = re.compile(
    rf"(?P<text>{WORD}[^\W\d_]+)|(?P<command>\\[A-Za-z]+)|(?P<escape>\\.)|(?P<letters>[A-Za-z]+)"
    r"|(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<space>\s+)|(?P<other>.)",
    re.DOTALL,
)
_SAYING = re.compile(
    rf"^(?:{WORD}?[A-Za-z]+[\s,]+){{0,20}}?{WORD}?(?:is|are|equals|be|gives)\s*:?\s+(?=\S)"
    r"|^[^\d:=\\]{0,60}[A-Za-z]{3}[^\d:=\\]{0,9}:(?!=)\s*"
)
_LETTER = re.compile(rf"(?<![\\A-Za-z{WORD}])[A-Za-z]|\\(?:angle|theta|alpha|beta|gamma|lambda|mu|phi|omega|overline)")


class NoReading(ValueError):
    """The text does not name values and nothing else."""


@dataclass(frozen=True)
class Value:
    r"""One value: ``x = \frac12 \approx 0.5 cm``.

    Attributes:
        label: what the value is said to be of, without spaces; "" for none.
        sides: LaTeX of expressions that are said to be equal; the first may be a label, see `reward.math_judge`.
        near: as many; whether a side is said to be only near.
        relation: the whole as LaTeX where it is an inequality, else "".
        words: the whole as text where it is no mathematics, else "".
    """

    sides: tuple[str, ...] = ()
    near: tuple[bool, ...] = ()
    unit: Unit = Unit()
    label: str = ""
    relation: str = ""
    words: str = ""
    whole: str = ""


def _marked(match: re.Match) -> str:
    inner = match[1]
    if len(inner.strip()) == 1 and match[0].startswith(r"\mathrm") and inner.strip() in "eid":
        return inner
    return " " + re.sub(r"(?<![A-Za-z\\])[A-Za-z]+", lambda word: WORD + word[0], inner) + " "


def _repeating(match: re.Match) -> str:
    whole, fixed, period = match[1] or "0", match[2], match[3]
    tail = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
    value = int(whole) + (Fraction(int(fixed), 10 ** len(fixed)) if fixed else 0) + tail
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _fraction(match: re.Match) -> str:
    whole, *parts = (part for part in match.groups() if part)
    return rf"{whole}\frac{{{parts[0]}}}{{{parts[1]}}}"


def prepare(text: str) -> str:
    """Layout and fonts taken away, text inside of mathematics marked, numbers in one form."""
    text = text.replace(WORD, "").replace(r"\$", "$").replace(r"\!", "").replace("{,}", ",")
    text = re.sub(r"(?<!\\)\\[()\[\]]|\*\*(?!\s*[\d({a-z])|^\*\*|`", " ", text)
    text = _TEXT.sub(_marked, _SPACE.sub(" ", text))
    text = _FONT.sub("", text)
    text = re.sub(r"\\([dt]?binom)\s?(\d)\s?(\d)", r"\\\1{\2}{\3}", text)
    text = _REPEATING.sub(_repeating, _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text))
    return re.sub(r" \^", "^", " ".join(_MIXED.sub(_fraction, text).split()))


def _depths(text: str) -> list[int]:
    """Depth in brackets (and matrices) before each character, and at the end. Raises NoReading where they do not
    match up."""
    depths, depth = [], 0
    for place, char in enumerate(text):
        depths.append(depth)
        if char in "([{" or text.startswith(r"\begin", place):
            depth += 1
        elif char in ")]}" or text.startswith(r"\end", place):
            depth -= 1
            depths[place] = depth
        if depth < 0 or depth > MAX_DEPTH:
            raise NoReading("brackets")
    if depth:
        raise NoReading("brackets")
    return [*depths, 0]


def _split(text: str, pattern: re.Pattern) -> tuple[list[str], list[str]]:
    """Parts between the matches that stand outside of all brackets, and the matches."""
    depths = _depths(text)
    cuts = [match for match in pattern.finditer(text) if depths[match.start()] == 0 and depths[match.end()] == 0]
    starts, ends = [0, *(cut.end() for cut in cuts)], [*(cut.start() for cut in cuts), len(text)]
    parts = [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]
    return parts, [cut[0].strip() for cut in cuts]


def _ungrouped(text: str) -> str:
    """Thousands separators taken away, outside of brackets: in them commas are between values."""
    depths = _depths(text)
    return _THOUSANDS.sub(lambda m: m[0] if depths[m.start()] else m[0].replace(",", "").replace(" ", ""), text)


def _unwrapped(text: str) -> str:
    """Without braces around all of it."""
    while text[:1] == "{" and text[-1:] == "}" and 0 not in _depths(text)[1:-2]:
        text = text[1:-1].strip()
    return text


def read(text: str) -> list[Value]:
    """The values that a normalised answer names, in order. Raises NoReading."""
    text = prepare(text)
    if "..." in text or re.search(r"\\[lc]?dots", text):
        raise NoReading("dots")
    pieces, _ = _split(_ungrouped(_unwrapped(text)), _SEPARATOR)
    pieces = [piece for piece in pieces if piece]
    if not pieces:
        raise NoReading("empty")
    return [_value(piece) for piece in pieces]


def _value(piece: str) -> Value:
    modulus = ""
    if match := _MODULUS.search(piece):
        piece, modulus = piece[: match.start()].strip(), f"mod {match[1]}"
    if said := _SAYING.match(piece):
        _no_hedge(said[0], but={"is", "are"})
        piece = piece[said.end() :].strip()
    parts, relations = _split(piece, _RELATION)
    if any(relation not in _SAME + _NEAR for relation in relations):
        if any(WORD in part for part in parts):
            raise NoReading("words in a relation")
        return Value(relation=piece, whole=piece)
    if relations and not parts[0] and relations[0] in _NEAR:
        parts, relations = parts[1:], relations[1:]
    if not all(parts):
        raise NoReading("half of an equation")
    if not relations and (words := _words(parts[0])):
        letters = (piece,) if piece.isascii() and piece.isalpha() else ()  # a product of variables, it may be
        return Value(letters, (False,), words=words, whole=piece)
    label = ""
    if relations and _LETTER.search(parts[0]) or WORD in parts[0] and relations:
        label = parts[0].replace(WORD, "").replace(" ", "")
        _no_hedge(parts[0])
    sides, units = [], [Unit()]
    for place, part in enumerate(parts):
        if place == 0 and label:
            sides.append(part.replace(WORD, ""))
            continue
        core, unit = unit_of(part, _TOKEN, WORD)
        sides.append(_core(core))
        units.append(unit)
    unit = Unit(units[-1].name or modulus, units[-1].known)
    near = (False, *(relation in _NEAR for relation in relations))
    return Value(tuple(sides), near, unit, label, whole=" = ".join(sides))


def _no_hedge(text: str, but: Set[str] = frozenset()) -> None:
    if set(re.findall(r"[a-z]+", text.lower())) & HEDGES - but:
        raise NoReading("a hedge")


def _words(piece: str) -> str:
    """The piece as text, lower case, where it is nothing but words; "" otherwise."""
    tokens = [match for match in _TOKEN.finditer(piece) if match.lastgroup != "space"]
    words = [match[0].lstrip(WORD) for match in tokens if match.lastgroup in ("text", "letters")]
    rest = {match[0] for match in tokens if match.lastgroup not in ("text", "letters")}
    written = any(match.lastgroup == "text" and len(match[0]) > 2 for match in tokens)
    written = written or any(len(word) > 2 and word.lower() not in FUNCTIONS for word in words)
    return " ".join(words).casefold() if written and rest <= set(".,;:'\"-()!?") else ""


def _core(text: str) -> str:
    """The mathematics of a side. Raises NoReading for words in it, and for numbers beside each other."""
    text = re.sub(rf"{WORD}([A-Za-z])(?![A-Za-z])", r"\1", text).strip()
    if not text or WORD in text:
        raise NoReading("words")
    if re.search(r"\d\s+[\d.]", text):
        raise NoReading("numbers beside each other")
    return text


def base_of(side: str) -> tuple[str, str]:
    """A number and the base that is written under it, "" for none."""
    match = _BASE.search(side)
    return (side[: match.start()], match[1]) if match else (side, "")
