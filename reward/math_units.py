"""Units and other words after a value: what may stand there, and what makes a hedge of it."""

import re
from dataclasses import dataclass

# Words that take back, bound or double what is said. Beside a value they leave no answer.
HEDGES = frozenset(
    "or maybe not perhaps possibly probably about approximately approx around roughly nearly almost least most than "
    "between either neither nor if unless otherwise except versus vs but wrong incorrect false no else both any "
    "unsure unknown guess think could might can cannot never alternatively likely unlikely impossible instead "
    "isn aren wasn doesn don is are was were and"
    .split()
)  # fmt: skip
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt frac dfrac tfrac binom min max "
    "gcd lcm det mod deg inf sup lim infty pi".split()
)
_GROUPS = """
mm millimeter millimetre | cm centimeter centimetre | dm decimeter decimetre | m meter metre | km kilometer kilometre
in inch inches | ft foot feet | yd yard | mi mile
mg milligram | g gm gram | kg kilogram | lb lbs pound | oz ounce | t ton tonne
ml mL milliliter millilitre | cl cL centiliter | l L liter litre | gal gallon
s sec second | min minute | h hr hour | day | week | month | yr year | ms millisecond
dollar usd | cent | euro eur | yen | rupee rs
N newton | J joule | W watt | V volt | A ampere amp | Hz hertz | Pa pascal | K kelvin | mol mole
mph | kmh kmph kph | degree deg | radian rad | percent percentage pct
"""
KNOWN = {word: group.split()[0] for line in _GROUPS.splitlines() for group in line.split("|") for word in group.split()}
LONE = frozenset("m g s h l L t".split())  # as bare letters, only after a space
SIGNS = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}
MAX_WORDS = 6

_DEGREE = re.compile(r"\s*\^\s?(?:\{\s?\\circ\s?\}|\\circ)\s*(?:\ue000?([CFK])(?![A-Za-z]))?$|\s*\\degree$")
_PERCENT = re.compile(r"\s*(?:\\?%|(?:\ue000|\s)(?:[Pp]ercent|[Pp]ercentage|pct))$")
_SIGN = re.compile(r"^([+-]?)\s*(?:US|us)?\s*([$€£¥₹])\s*(?=[\d.+-])|\s*([$€£¥₹])$")
_CODE = re.compile(r"^(?:\ue000?(?:Rs\.?|USD|EUR))\s*(?=\d)")
_POWER = re.compile(r"\^(?:\{\s?(-?\d)\s?\}|(-?\d))$")


@dataclass(frozen=True)
class Unit:
    """A unit or other words after a value; known: whether it can be told from other units for sure."""

    name: str = ""
    known: bool = False

    def agrees(self, other: "Unit") -> bool:
        """Whether both may stand at the same value: where one is left out, they do."""
        if not self.name or not other.name or self.name == other.name:
            return True
        if self.known and other.known:
            return False
        own, others = set(self.name.split()), set(other.name.split())
        return own <= others or others <= own


def _canonical(word: str) -> str:
    for form in (word, word.lower(), word.lower().removesuffix("s"), word.lower().removesuffix("es")):
        if form in KNOWN:
            return KNOWN[form]
    word = word.lower()
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def unit_of(side: str, token: re.Pattern, mark: str) -> tuple[str, Unit]:
    """A side without its unit, and the unit.

    Args:
        token: splits into text, command, escape, letters, number, space, other; mark: stands before text.
    """
    if sign := _SIGN.search(side):
        rest = (sign[1] or "") + side[sign.end() :] if sign[2] else side[: sign.start()]
        return rest.strip().removesuffix(" " + mark + "USD"), Unit(SIGNS[sign[2] or sign[3]], True)
    if code := _CODE.match(side):
        return side[code.end() :], Unit(_canonical(code[0].strip(f"{mark} .")), True)
    if match := _DEGREE.search(side):
        if match.start():
            return side[: match.start()].strip(), Unit(f"degree {match[1]}" if match[1] else "degree", True)
    if match := _PERCENT.search(side):
        return side[: match.start()].strip(), Unit("percent", True)
    side, end, names, powers = side.rstrip(" ."), len(side.rstrip(" .")), [], False
    tokens = list(token.finditer(side))
    place = len(tokens) - 1
    start = end
    while place > 0:
        kind, text = tokens[place].lastgroup, tokens[place][0]
        before = tokens[place - 1].lastgroup
        if kind in ("text", "letters"):
            word = text.lstrip(mark)
            known = word in KNOWN or word.lower() in KNOWN or word.lower().removesuffix("s") in KNOWN
            lone = len(word) == 1
            if kind == "letters":
                per = tokens[place - 1][0] == "/" and place > 1 and tokens[place - 2].lastgroup in ("text", "letters")
                if lone and not (word in LONE and (before == "space" or per)):
                    break
                if not (known or (len(word) > 2 and before in ("space", "other"))) or word.lower() in FUNCTIONS:
                    break
            names.append(_canonical(word))
            start = tokens[place].start()
        elif power := _POWER.search(side[: tokens[place].end()]):
            # of a unit: cm^2; of a value it is no unit's
            first = next(i for i, match in enumerate(tokens) if match.start() == power.start())
            if first < 2 or tokens[first - 1].lastgroup not in ("text", "letters"):
                break
            if tokens[first - 1].lastgroup == "letters" and tokens[first - 1][0] not in KNOWN:
                break
            names.append(f"^{power[1] or power[2]}")
            powers = True
            place = first
        elif not (kind == "space" or text in "/.,;-()!'\"" or text in (r"\cdot", r"\times") and names):
            break
        place -= 1
    if start == end:
        return side, Unit()
    core = side[:start].rstrip(" (-/,;.")
    if not core or side[start:].count("(") > side[start:].count(")"):
        return side, Unit()
    words = names[::-1]
    if HEDGES & {word.lower() for word in re.findall(r"[A-Za-z]+", side[start:])} or len(words) > MAX_WORDS:
        return side, Unit()
    certain = {*KNOWN.values()}
    squared = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
    if powers or words[0] in squared:
        words = [*(w for w in words if w not in squared), *(squared[w] for w in words if w in squared)]
    return core, Unit(" ".join(words), all(word in certain or word[0] == "^" for word in words))
