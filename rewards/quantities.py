"""Numbers with their units, and words, read from cleaned answers (``notation.clean``) without any library."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

LEAST_DIGITS = 6
"""Significant digits from which on a decimal may stand for the number that rounds to it: 3.14159 for pi, but not 3.14."""
MOST_DIGITS = 400
"""Digits of the longest exponent of ten and of numbers that are written out here."""


class Number(NamedTuple):
    """A rational number as it is written."""

    value: Fraction
    digits: int
    """Significant digits of a decimal; 0 for whole numbers and fractions, which stand for nothing but themselves."""


_PLAIN = r"\d+(?:\.\d*)?"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?) ?(?:\\frac\{{(?P<above>-?\d+)\}}\{{(?P<below>-?\d+)\}}|\((?P<whole>\d+)\+\\frac\{{(?P<a>\d+)\}}\{{(?P<b>\d+)\}}\)"
    rf"|(?P<left>\d+) ?/ ?(?P<right>\d+)"
    rf"|(?:(?P<plain>{_PLAIN}) ?(?:\\times|\\cdot|\*|x) ?)?10 ?\^ ?(?P<power>\d|\{{[+-]?\d+\}})|(?P<only>{_PLAIN}))"
)


def read_number(text: str) -> Number | None:
    """An integer, decimal, fraction, mixed number or power of ten; None for anything else."""
    found = _NUMBER.fullmatch(text.strip()) if len(text) <= MOST_DIGITS else None
    if found is None:
        return None
    g = found.groupdict()
    sign = -1 if g["sign"] == "-" else 1
    try:
        if g["above"]:
            value, written = Fraction(int(g["above"]), int(g["below"])), ""
        elif g["whole"]:
            value, written = int(g["whole"]) + Fraction(int(g["a"]), int(g["b"])), ""
        elif g["left"]:
            value, written = Fraction(int(g["left"]), int(g["right"])), ""
        elif g["power"]:
            power = int(g["power"].strip("{}"))
            if abs(power) > MOST_DIGITS:
                return None
            written = g["plain"] or "1"
            value = Fraction(written.rstrip(".")) * Fraction(10) ** power
        else:
            written = g["only"].rstrip(".")
            value = Fraction(written)
    except ZeroDivisionError:
        return None
    decimal = "." in written
    return Number(sign * value, len(written.replace(".", "").lstrip("0")) if decimal else 0)


def same_number(one: Number, other: Number) -> bool:
    """Equal, or one is a decimal of six digits or more to which the other rounds."""
    if one.value == other.value:
        return True
    if bool(one.digits) == bool(other.digits):  # two decimals, or two exact numbers
        return False
    decimal, exact = (one, other) if one.digits else (other, one)
    return rounds_to(float_difference(decimal.value, exact.value), decimal.digits)


def float_difference(one: Fraction, other: Fraction) -> float:
    """|one / other - 1|, infinite for other = 0."""
    return float(abs(one / other - 1)) if other else float("inf")


def rounds_to(relative: float, digits: int) -> bool:
    """Whether a decimal of so many significant digits may stand for a number at this relative distance."""
    return digits >= LEAST_DIGITS and relative <= 0.5 * 10.0 ** (1 - digits)


FUNCTIONS = frozenset((
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln", "lg", "exp", "max",
    "min", "gcd", "lcm", "det", "deg", "dim", "ker", "lim", "sup", "inf", "mod", "bmod", "pi", "sqrt",
))  # fmt: skip
STOP = frozenset((
    "and", "or", "not", "than", "mod", "bmod", "if", "when", "over", "more", "less", "from", "to", "between", "is", "are",
))  # fmt: skip
"""Words that no unit has: what they stand in is more than a number and its unit."""
_SAME_UNIT = (
    "% percent", "am", "pm", "sq square", "cu cubic", "deg degree degrees C",
    "$ dollar dollars usd", "€ euro euros eur", "£ pound pounds gbp", "¢ cent cents",
    "mm millimeter millimeters millimetre millimetres", "cm centimeter centimeters centimetre centimetres",
    "m meter meters metre metres", "km kilometer kilometers kilometre kilometres", "in inch inches", "ft foot feet", "mi mile miles",
    "yd yard yards", "s sec secs second seconds", "min mins minute minutes", "h hr hrs hour hours", "d day days", "week weeks",
    "month months", "yr yrs year years", "mg milligram milligrams", "g gram grams", "kg kilogram kilograms", "lb lbs",
    "oz ounce ounces", "mL ml milliliter milliliters millilitre millilitres", "L l liter liters litre litres", "gal gallon gallons",
    "mi/h mph", "km/h kmh kmph kph", "m/s", "km/s", "cm/s", "ft/s", "m/min",
    "rad radian radians", "ms", "kW", "kWh", "mW", "MW", "Hz", "kHz", "MHz", "GHz", "V volt volts",
    "mV", "kV", "A ampere amperes", "mA", "W watt watts", "J joule joules", "kJ", "MJ", "N newton newtons", "kN", "Pa", "kPa", "MPa", "atm",
    "K kelvin", "T tesla teslas", "F farad farads",
    "eV", "keV", "MeV", "GeV", "TeV", "nm", "um", "ns", "us", "ug", "uF", "uC", "mol", "mmol", "rpm", "ppm", "ohm ohms", "kohm",
    "Mohm",
)  # fmt: skip
_APART = frozenset(("nm", "um", "ns", "us", "ug", "kN", "kJ", "MJ", "kV", "mV", "mA", "mW", "MW", "mol"))
"""Units that are products of variables without a space in front of them."""
_UNIT_OF = {word: line.split()[0] for line in _SAME_UNIT for word in line.split()}
_KNOWN = {word.casefold() for word in _UNIT_OF}
_NAMES = frozenset(f"{unit}{power}" for unit in _UNIT_OF.values() for power in ("", "2", "3"))
"""Of known units, their squares and cubes."""
_FRACTION_OF_UNITS = re.compile(r"\\frac\{ ?([A-Za-z]+) ?\}\{ ?([A-Za-z]+(?: ?\^ ?\{?\d\}?)?) ?\}$")
_PHRASE = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?:[A-Za-z./{} -]|\^ ?\{?-?\d|\\cdot|(?<=\^\{-)\d)*$")
_CURRENCY = re.compile(r"^(-?) ?(\\\$|[$€£¥]|(?:Rs\.?|USD|US\\\$) ?)(?=[ \d.])")
_CLOCK = re.compile(r"(?i) ?(?<![a-z])([ap])\.? ?m\.?$")
_ANGLES = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)")
"""Functions whose argument is an angle, where degrees are no unit of the whole."""
_DEGREES = re.compile(r" ?\^ ?\{?\\circ\}? ?[CF]?$| ?\\circ$")


def split_unit(text: str) -> tuple[str, str]:
    """A quantity without its unit, and the unit: one name for each known one, the words for others, empty where there is none."""
    text = text.strip()
    currency = _CURRENCY.match(text)
    if currency:
        return currency.group(1) + split_unit(text[currency.end() :])[0], currency.group(2).strip("\\ ")
    if text.endswith("%"):
        return text[:-1].strip(), "%"
    degrees = _DEGREES.search(text)
    if degrees and not _ANGLES.search(text):
        return text[: degrees.start()].strip(), "deg"
    clock = _CLOCK.search(text)
    if clock and re.match(r"\d{1,2}(?::\d\d)?$", text[: clock.start()]):
        return text[: clock.start()], f"{clock.group(1).lower()}m"
    fraction = _FRACTION_OF_UNITS.search(text)
    if fraction and {fraction.group(1), re.sub(r"[^A-Za-z]", "", fraction.group(2))} <= _KNOWN:
        text = f"{text[: fraction.start()]} {fraction.group(1)}/{fraction.group(2)}"
    phrase = _PHRASE.search(text[-80:])
    if phrase is None:
        return text, ""
    start = len(text) - (len(phrase.group()))
    head, words = text[:start], re.findall("[A-Za-z]+", phrase.group())
    apart, number = head.endswith(" "), read_number(head) is not None
    measured = re.search(r"\d|\\pi|\\sqrt|\\frac", head) or (apart and all(len(w) > 1 and w in _UNIT_OF for w in words))
    if not measured or not all(_is_unit(word, apart, number) for word in words):
        return text, ""
    power = re.search(r"\^ ?\{?(-?\d)", phrase.group())
    speed = f"{_named(words[0])}/{_named(words[-1])}"
    if (
        speed in _UNIT_OF
        and len([word for word in words if word != "per"]) == 2
        and (not power or power.group(1) == "-1")
    ):
        return head.strip(), speed
    return head.strip(), (_named(words[0]) if len(words) == 1 else " ".join(words)) + (power.group(1) if power else "")


def _named(word: str) -> str:
    return _UNIT_OF.get(word) or _UNIT_OF.get(word.casefold(), word.casefold())


def _is_unit(word: str, apart: bool, number: bool) -> bool:
    """Single letters are units only behind a number and a space; unknown words only behind a space."""
    if len(word) == 1 or word in _APART:
        return word in _UNIT_OF and apart and number
    return word.casefold() in _KNOWN or (apart and word.casefold() not in STOP | FUNCTIONS and is_word(word))


def read_based(text: str) -> tuple[int, int] | None:
    """The value and base of a number such as ``52_{8}``; None for anything else, and for digits that the base does not have."""
    found = re.fullmatch(r"([0-9A-Z]+)_\{(\d{1,2})\}", text)
    try:
        return (int(found.group(1), int(found.group(2))), int(found.group(2))) if found else None
    except ValueError:
        return None


def units_differ(one: str, other: str) -> bool:
    """Whether two units are both known and not the same; what is unknown, or left out, may be any."""
    return one != other and one in _NAMES and other in _NAMES


def is_word(word: str) -> bool:
    """Whether letters in a row are a word, or letters whose order counts (``BAC``), and no product of variables such as ``xy``."""
    if len(word) < 2 or word in FUNCTIONS:
        return False
    return len(word) > 3 or not word.isascii() or not word.islower() or any(c in "eiou" for c in word)


_TEXT = re.compile(r"[^\W\d_](?:[^\W\d_]|[ ,.'&!?-])*")


def is_text(text: str) -> bool:
    """Whether an answer consists of words, to be compared as text."""
    return _TEXT.fullmatch(text) is not None and any(map(is_word, re.findall(r"[^\W\d_]+", text)))


_LABEL = re.compile(r"(?:[A-Za-z]+\d+)+[A-Za-z]*")
_PART = re.compile(r"[A-Za-z]+\d*")


def same_labels(one: str, other: str) -> bool | None:
    """Whether two answers in labels (``e4 e5``, ``c182 c76``, ``C6H12O6``) are the same; None where they may be formulas.

    In a formula a number stands before its variable, or is an index with ``_``. Indices may be left out (``H2O`` equals ``H_2O``). The
    order of words counts; parts of one word in another order may be a product (``m1v1``).
    """
    plain = [re.sub(r"[_{}]", "", text).casefold() for text in (one, other)]
    words = [re.split(r" +|, *", text) for text in plain]
    if not all(
        _LABEL.fullmatch(w) and not FUNCTIONS.intersection(re.findall("[a-z]+", w)) for side in words for w in side
    ):
        return None
    if words[0] == words[1]:
        return True
    may_be_formulas = "," in one + other or "_" in one + other
    parts = [sorted(_PART.findall(side[0])) for side in words]
    return None if may_be_formulas or (len(words[0]) == len(words[1]) == 1 and parts[0] == parts[1]) else False


def text_key(text: str) -> str:
    """What counts in a text: letters and digits, without case and without an article at the beginning."""
    return re.sub(r"[\W_]+", "", re.sub(r"^(?:an?|the) +", "", text.casefold().strip()))


_LETTER = re.compile(r"\(?([A-J])\)?\.?|\(([a-j])\)")
_CHOSEN = re.compile(
    r"(?:(?i:option|choice|answer) )?(?:\(?([A-Ja-j])\)?[.:)]?|(?:\(([A-Ja-j])\)|([A-J]) ?[.:)]|([A-J]) -) ?\S.*|([A-J]),? ?(?=[\d$]|\\(?!"
    r"cup|cap|times|cdot|pm|mp|in|to|ne|le|ge|sub|sup|wedge|vee|setminus)).*)",
    re.DOTALL,
)


def choice_letter(reference: str) -> str | None:
    """The letter of a reference that is one of the choices A to J; None for any other reference."""
    found = _LETTER.fullmatch(reference)
    return (found.group(1) or found.group(2)).upper() if found else None


def chosen_letter(answer: str) -> str | None:
    """The letter that an answer to a multiple-choice question chooses, with or without the choice's text behind it."""
    found = _CHOSEN.fullmatch(answer)
    return next(group for group in found.groups() if group).upper() if found else None
