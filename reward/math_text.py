r"""One way to write mathematics: characters of many scripts and fonts as LaTeX, before anything is compared.

Unicode's own compatibility form (NFKC) is not enough: it makes 102 of ``10²`` and 1/2 of the second half of ``3½``.
"""

import math
import re
import unicodedata
from itertools import groupby

# font commands around the whole answer, and parentheses around one number
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathbf|mathrm|bf|rm|boxed|fbox|mbox)\s?\{([^{}]+)\}|\(([+-]?[\d.]+)\)"
)
_SYMBOLS = {
    "−": "-", "–": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/", "±": r"\pm ",
    "∓": r"\mp ", "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∞": r"\infty ", "π": r"\pi ", "≤": r"\le ", "≥": r"\ge ",
    "≠": r"\neq ", "≈": r"\approx ", "≡": r"\equiv ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ",
    "°": r"^{\circ}", "º": r"^{\circ}", "→": r"\to ", "⇒": r"\Rightarrow ", "∨": r"\lor ", "∧": r"\land ",
    "℃": r"^{\circ}C", "℉": r"^{\circ}F", "′": "'", "″": "''",
}  # fmt: skip
_ROOT = re.compile(r"(\\sqrt(?:\[3\])?) ?(\d+(?:\.\d+)?|[A-Za-z]|\([^()]*\))")


def _kind(char: str) -> str:
    """How a character is set: raised, lowered, a fraction of its own, or "" for on the line."""
    if char in _SYMBOLS or char.isascii():
        return ""
    tag = unicodedata.decomposition(char).partition(" ")[0]
    return {"<super>": "^", "<sub>": "_", "<fraction>": "/"}.get(tag, "")


def _plain(char: str) -> str:
    digit = unicodedata.decimal(char, None)
    return char if char.isascii() or digit is None else str(digit)


def _run(kind: str, chars: str) -> str:
    if not kind:
        return "".join(_SYMBOLS.get(char, char) for char in chars)
    if kind == "/":
        halves = (unicodedata.normalize("NFKC", char).split("⁄") for char in chars)
        return "".join(rf"\frac{{{top}}}{{{bottom or '1'}}}" for top, bottom in halves)
    inner = unicodedata.normalize("NFKC", chars).replace("−", "-")
    return f"{kind}{{{inner}}}"


def normalise(answer: str) -> str:
    """Digits of other scripts, full-width forms, raised and lowered characters, fractions, kinds of minus and space."""
    if not answer.isascii():
        answer = "".join(_run(kind, "".join(chars)) for kind, chars in groupby(answer, _kind))
        answer = unicodedata.normalize("NFKC", answer)
        answer = "".join(_SYMBOLS.get(char, _plain(char)) for char in answer)
        answer = _ROOT.sub(r"\1{\2}", answer)
    text = " ".join(answer.split()).strip(" .$").rstrip("\\")  # of a dollar sign
    while match := _WRAPPER.fullmatch(text):
        text = (match[1] or match[2]).strip(" .$")
    return text


_INTEGER = re.compile(r"([+-]?)0*(\d+|\d{1,3}(?:(?:,|\{,\})\d{3})+)(?:\.0*)?")


def integer_of(text: str) -> str | None:
    """A plain whole number's digits, with a minus where it is negative and without separators; None for others."""
    if not (match := _INTEGER.fullmatch(text)):
        return None
    digits = match[2].replace("{,}", "").replace(",", "").lstrip("0")
    return ("-" if match[1] == "-" and digits else "") + (digits or "0")


_EXPLOSIVE = re.compile(
    r"!\s*!"  # factorials of factorials
    r"|\d{5,}\s*!"
    r"|\^[^!]{0,40}[)}]\s*!"
    r"|(?:\^|[\w)}] ?\*\*)\s*\{?\(?\s*-?\d{6,}"  # a million digits and more
    r"|\d[eE]\+?\d{5,}"
    r"|(?:(?:\^|\*\*)[\s{(\-]*(?:\d+|[a-z]|\\pi|\\frac\{?\d+\}?\{?\d+\}?)[\s)}]*){3}"  # three storeys
)
_TWO_STOREYS = re.compile(r"(?:\^|\*\*)[\s{(\-]*(\d{1,20})[\s)}]*(?:\^|\*\*)[\s{(\-]*(\d{1,20})")


def explosive(text: str) -> bool:
    """Whether evaluating it would never end: towers of powers, factorials of large numbers."""
    if _EXPLOSIVE.search(text):
        return True
    exponents = ((int(match[1]), int(match[2])) for match in _TWO_STOREYS.finditer(text))
    return any(base > 1 and power * math.log10(base) > 6 for base, power in exponents)
