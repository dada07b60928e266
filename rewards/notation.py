"""One notation for answers that mean the same: what people and models type, as plain LaTeX. Nothing here evaluates anything."""

from __future__ import annotations

import re
import unicodedata

_CHARACTERS = str.maketrans(
    dict.fromkeys("−–—‒‐‑﹣－", "-")
    | dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\t\n\r~", " ")
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff`", "")
    | {"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/", "∗": "*", "∶": ":"}
    | {"π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx "}
    | {"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "∅": r"\emptyset ", "ø": r"\emptyset "}
    | {"α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "θ": r"\theta ", "λ": r"\lambda ", "φ": r"\phi ", "ω": r"\omega "}
    | {"√": r"\surd ", "∛": r"\sqrt[3]", "°": r"^\circ ", "º": r"^\circ ", "′": "'", "’": "'", "…": r"\ldots "}
    | {"→": r"\to ", "≡": r"\equiv ", "\u00b5": r"\mu ", "\u03bc": r"\mu ", "\u03a9": r"\Omega ", "\u2126": r"\Omega "}
    | {"，": ",", "：": ":", "（": "(", "）": ")", "％": "%", "＝": "=", "℃": r"^\circ C", "ℝ": r"\mathbb{R}"}
)  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SPELLINGS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "nicefrac": "frac", "sfrac": "frac", "flatfrac": "frac",
    "dbinom": "binom", "tbinom": "binom",
    "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge", "neq": "ne",
    "varnothing": "emptyset", "degree": "circ", "degrees": "circ", "infin": "infty", "rightarrow": "to", "colon": ":", "ast": "*",
    "lt": "<", "gt": ">", "lbrace": "{", "rbrace": "}", "lparen": "(", "rparen": ")", "lbrack": "[", "rbrack": "]", "langle": "(",
    "rangle": ")", "thickspace": " ",
    "euro": "€", "pounds": "£", "mod": "bmod", "pmod": "bmod", "vert": "|", "lvert": "|", "rvert": "|", "approxeq": "approx",
    "simeq": "approx", "div": "/", "bigcup": "cup", "textdollar": "$", "textdegree": "circ", "land": "wedge", "implies": "to",
    "varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta", "dots": "ldots", "dotsc": "ldots",
}  # fmt: skip
_BLANK = frozenset((
    "quad", "qquad", "thinspace", "medspace", "enspace", "displaystyle", "textstyle", "limits", "nolimits", "hfill", "tiny", "small",
    "normalsize", "large", "Large", "LARGE", "huge", "Huge", "bf", "rm", "it", "bfseries", "itshape", "boldmath", "centering",
))  # fmt: skip
_SIZES = frozenset((
    "left", "right", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "middle",
))  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+) *(?=([A-Za-z]?))")
ROW = "\x1e"
"""Ends a row of a matrix."""
_FONT = re.compile(
    r"\\(text(?:bf|it|rm|sf|tt|sl|sc|normal|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|textnormal|operatorname\*?|boldsymbol|bm|emph"
    r"|underline|boxed|fbox|ensuremath|displaylines) *\{((?:[^{}]|\^\{[^{}]*\})*)\}"
)  # fmt: skip
_SUBSCRIPT_WORD = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11,
                   "twelve": 12, "sixteen": 16}  # fmt: skip
_ANNOUNCED = re.compile(
    r"(?i)^[\s*]*(?:(?:so|thus|therefore|hence),? )?(?:the )?(?:final |correct )?(?:answer|option|choice)(?: is| are|:| =| :)+[\s:*]*"
)
_ABOUT = re.compile(r"(?i)^(?:approximately|approx\.?|exactly) *(?=[-\d$\\])")
DEEPEST = 32
"""Fonts within fonts that are looked into."""


def clean(text: str) -> str:
    """An answer in one spelling: no fonts, sizes, spacing, delimiters, ``$``, thousands separators or final punctuation.

    ``\\$`` stays as the sign of a currency, degrees as ``^\\circ``, per cent as ``%``; other units stay as words behind a space.
    """
    text = _scripts(text).translate(_CHARACTERS).replace("...", r"\ldots ")
    if "\\begin" in text:
        text = re.sub(r"\\\\ *(?:\[[^\]]{0,9}\])?(?!begin|end|frac|sqrt|pi|text)|\\cr\b", ROW, text)
    text = text.replace("\\\\", "\\")  # escaped twice
    if "\\" in text:
        text = _without_fonts(text)
    text = re.sub(r"(?<!\\)\$|\\[()\[\]]|\\(?:left|right) ?\.", "", text)
    text = re.sub(r"(\d) *(?:\\[,;:! ]|\{,\}) *(?=\d{3}(?!\d))", r"\1,", text)
    text = re.sub(r"\\!|\{\}(?=[_^])|\{(?=[-+,]\})|(?<=\{[-+,])\}", "", text)
    text = re.sub(r"\\(?:[,;: ]|$)|&nbsp;", " ", text)
    text = _COMMAND.sub(_command, text).replace("\\%", "%")
    text = re.sub(r"(?i)(?<![a-z\\])(?:per ?cent(?:age)?|pct)(?![a-z])", "%", text)
    text = re.sub(r"(?i)(?<![a-z\\])(?:plus|positive)? ?infinity(?![a-z])", r"\\infty ", text)
    text = re.sub(r"(?<![A-Za-z\\])(pi|sqrt|gcd|lcm)(?![A-Za-z])", r"\\\1 ", text)
    if "\\mu" in text or "\\Omega" in text:
        text = re.sub(r"(\d) *\\mu *([msgFCALM])$", r"\1 u\2", text.rstrip(" ."))
        text = re.sub(r"(\d) *([kM]?) *\\Omega$", r"\1 \2ohm", text)
    text = re.sub(r"\^ *\{ *\\circ *\}", r"^\\circ ", text)
    text = _ABOUT.sub("", _ANNOUNCED.sub("", _trimmed(text)))
    return _trimmed(_numbers(re.sub(r" +", " ", text)))


def _without_fonts(text: str) -> str:
    """Without labels, colours and fonts; arguments of one letter get their braces."""
    text = re.sub(r"\\tag\*? *\{[^{}]*\}|\\(?:h|v)space\*? *\{[^{}]*\}|\\label *\{[^{}]*\}", " ", text)
    text = re.sub(r"\\(?:text)?color *(?:\[[^\]]*\])? *\{[^{}]*\}", " ", text)
    text = re.sub(r"\{ *\\(?:rm|bf|it|sf|tt|sl|sc)\b *([^{}]*)\}", r"\\text{\1}", text)
    text = re.sub(r"\\(math[a-z]+|text[a-z]{0,2}) +([A-Za-z\d])(?![A-Za-z\d])", r"\\\1{\2}", text)
    for _ in range(DEEPEST):
        text, changed = _FONT.subn(_unwrapped, text)
        if not changed:
            break
    return re.sub(r"\\(vec|hat|bar|overline|overrightarrow) +([A-Za-z])(?![A-Za-z])", r"\\\1{\2}", text)


def without_commas(text: str) -> str:
    """With numbers such as ``1,234,567`` or ``1 234 567`` in one piece."""
    text = re.sub(
        r"(?<![\d.,])(\d{1,3})((?:,\d{3})+)(?![\d,]|\.\d*,)", lambda m: m.group(1) + m.group(2).replace(",", ""), text
    )
    return re.sub(
        r"(?<![\d.,] )(?<![\d.,])(\d{1,3})((?: \d{3})+)(?! ?[\d/])", lambda m: m.group().replace(" ", ""), text
    )


def _scripts(text: str) -> str:
    """Raised and lowered digits of Unicode as exponents and indices."""
    if text.isascii():
        return text
    text = re.sub("[¼-¾⅐-⅞]", _vulgar, text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ]+", lambda m: f"^{{{m.group().translate(_RAISED)}}}", text)
    return re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: f"_{{{m.group().translate(_LOWERED)}}}", text)


def _vulgar(match: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", match.group()).partition("\u2044")
    return f"\\frac{{{above}}}{{{below}}}"


def _unwrapped(match: re.Match[str]) -> str:
    font, content = match.groups()
    if font.startswith(("math", "operator", "bold", "bm", "ens")) and len(content.strip()) <= 1:
        return content
    return f" {content} " if font.startswith(("text", "mbox", "hbox", "math")) else content


def _command(match: re.Match[str]) -> str:
    name = match.group(1)
    if name in _BLANK or name in _SIZES:
        return " " if name in _BLANK else ""
    spelling = _SPELLINGS.get(name, name)
    return f"\\{spelling}{' ' * bool(match.group(2))}" if spelling.isalpha() else ("\\" * (spelling in "{}") + spelling)


def _trimmed(text: str) -> str:
    """Without spaces, emphasis, final punctuation and braces around the whole."""
    while True:
        before = len(text)
        text = text.strip(" *").rstrip(".,;:").strip()
        if text.startswith(("{", "((")):
            text = _unnested(text)
        if len(text) == before:
            return text


def _unnested(text: str) -> str:
    """Without the braces, and all but one pair of the parentheses, that open at the beginning and close at the end; one pass."""
    opened: list[int] = []
    partner: dict[int, int] = {}
    for token in re.finditer(r"\\.|[{}()]", text):
        if token.group() in "{(":
            opened.append(token.start())
        elif token.group() in "})" and opened:
            partner[opened.pop()] = token.start()
    start, end = 0, len(text)
    while partner.get(start) == end - 1 and (text[start] == "{" or partner.get(start + 1) == end - 2):
        start, end = start + 1, end - 1
    return text[start:end]


_DIGIT_OR_GROUP = r"(?:\{[^{}]*\}|\d|[A-Za-z])"


def _numbers(text: str) -> str:
    """Fractions, roots, mixed numbers, exponents of ten and bases with all their braces."""
    text = re.sub(r"\\log *_ *\{? *e *\}? *", r"\\ln ", text)
    text = re.sub(r"[ ,;]{0,9}\( *([a-z]) *\\in *(\\mathbb\{[A-Z]\}[^()]{0,9})\)$", r", \1 \\in \2", text)
    text = re.sub(r"\\lg(?![A-Za-z])", r"\\log_{10}", text)
    text = re.sub(r"\\bmod *\{ *(\w+) *\}", r"\\bmod \1", text)
    text = re.sub(r"\\surd *(\d+(?:\.\d+)?|\([^()]*\)|\{[^{}]*\}|[A-Za-z]|\\pi)", _root, text)
    text = re.sub(r"\\sqrt *(\d+|[A-Za-z]|\([^()]*\))", _root, text)
    text = re.sub(r"\\frac *(\d|[A-Za-z]) *(?=\{)", r"\\frac{\1}", text)
    text = re.sub(
        rf"\\(frac|binom) *({_DIGIT_OR_GROUP}) *({_DIGIT_OR_GROUP})",
        lambda m: f"\\{m[1]}{_braced(m[2])}{_braced(m[3])}",
        text,
    )
    text = re.sub(r"(?<![\d.}])(\d+) *\\frac\{(\d+)\}\{(\d+)\}", _mixed, text)
    text = re.sub(r"(?<![\d./^] )(?<![\d./^])(\d+) (\d+) ?/ ?(\d+)(?![\d.])", _mixed, text)
    text = re.sub(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,4})(?![\w.])", r"\1\\times 10^{\2}", text)
    text = re.sub(r"\(([0-9A-Za-z]+)\) *_ *(\{[^{}]*\}|\d+)", r"\1_\2", text)
    text = re.sub(r"(?<![0-9A-Za-z\\])([0-9A-F]+) *_ *\{? *([a-z]+|\d+) *\}?", _base, text)
    text = re.sub(r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|dot|bar) *\{? *(\d+) *\}?", _repeating, text)
    text = re.sub(r"(?<![\d.])(\d*)\.(\d{0,9}?)(\d{1,9}?)\3+ ?\\ldots$", _repeating, text)
    return re.sub(r"(?<![\w.\\)}])\.(?=\d)", "0.", text)


def _braced(text: str) -> str:
    return text if text.startswith("{") else f"{{{text}}}"


def _root(match: re.Match[str]) -> str:
    return "\\sqrt{" + match.group(1).strip("{}" if match.group(1)[0] == "{" else "()") + "}"


def _mixed(match: re.Match[str]) -> str:
    whole, above, below = map(int, match.groups())
    return f"({whole}+\\frac{{{above}}}{{{below}}})" if above < below else match.group()


def _base(match: re.Match[str]) -> str:
    base = match.group(2)
    if not re.search(r"\d", match.group(1)):  # A_1 is a name
        return match.group()
    number = base if base.isdigit() else str(_SUBSCRIPT_WORD.get(base, base))
    return f"{match.group(1)}_{{{number}}}"


def _repeating(match: re.Match[str]) -> str:
    whole, start, period = match.groups()
    below = (10 ** len(period) - 1) * 10 ** len(start)
    above = int(whole + start + period) - int(whole + start or "0")
    return f"\\frac{{{above}}}{{{below}}}" if len(start + period) < 60 else match.group()
