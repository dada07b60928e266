"""Finds the final answer in a completion: one reading for rewards, contexts, votes and reports. Everything here takes one pass."""

from __future__ import annotations

import re
from collections.abc import Iterator

OPEN, CLOSE = "<think>", "</think>"


def extract_answer(text: str) -> str | None:
    """The answer that a text states after its thinking, as it is written there; None where it states none.

    The first of these that there is: the last closed ``<answer>`` tag, of which a box or mark within it counts; the last complete
    ``\\boxed{}`` that is not empty, together with others that "and" or a comma joins to it; what follows the last ``####`` (GSM8K's
    mark; headings are none); what follows the last "answer is", "Answer:" or "option is", on the same line or below it; the formula
    that the last sentence prints in bold, consists of, or concludes with ("So x = 5."). Any other number in a text is no answer.
    """
    text = after_thinking(text)
    tagged = last_in_tag(text, "answer")
    if tagged is None:
        return marked_answer(text) or _stated(text)
    return marked_answer(tagged) or _stated(tagged) or tagged.strip() or None


def marked_answer(text: str) -> str | None:
    """The answer in the last boxes, else behind the last ``####``; the text is taken as it is, thinking or not."""
    return _last_boxes(text) or _after_hashes(text)


def plain_answer(answer: str) -> str:
    """An answer without spaces, case, ``$`` and a final full stop, to compare it as text."""
    return "".join(answer.strip().strip("$").rstrip(".").split()).casefold()


def after_thinking(text: str) -> str:
    """What stands outside of every thinking span; nothing of a text whose last span never ends.

    The reading of ``onpolicy.utils.thinking`` with its usual tags, for rewards that are called by themselves: the framework hands over
    the part after the thinking as ``final``.
    """
    if OPEN not in text and CLOSE not in text:
        return text
    inside, outside = OPEN not in text, []
    for piece in re.split(f"({OPEN}|{CLOSE})", text):
        if piece in (OPEN, CLOSE):
            inside = piece == OPEN
        elif not inside:
            outside.append(piece)
    return "" if inside else "".join(outside).lstrip()


def boxed(text: str) -> list[str]:
    """Contents of every brace-balanced ``\\boxed{...}``, in order; unclosed ones are left out."""
    return [content for _, _, content in _boxes(text)]


def last_in_tag(text: str, tag: str) -> str | None:
    """What stands between the last ``<tag>`` that is closed and its ``</tag>``; None where there is none."""
    before, closed, _ = text.rpartition(f"</{tag}>")
    _, opened, inside = before.rpartition(f"<{tag}>")
    return inside if closed and opened else None


def stated_answers(text: str) -> list[tuple[int, str]]:
    """Every answer that a text states, thinking included, as ``(place, answer)`` in order.

    An answer is stated in ``\\boxed{}``, after ``####``, or as a number after "(the) answer is".
    """
    found = [(start, content.strip()) for start, _, content in _boxes(text)]
    found += [(m.start(), m.group(1).strip()) for m in _hash_marks(text)]
    found += [(m.start(), m.group(1).rstrip(".,")) for m in _ANSWER_IS.finditer(text)]
    return sorted(found)


_ANSWER_IS = re.compile(r"\banswer (?:is|would be|should be|must be)[: ]*\$?([-+]?[\d.,/]*\d)", re.IGNORECASE)
_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\boxed\s*(-?\d[\d.,/]*)|\\.|[{}]", re.DOTALL)
_JOINED = re.compile(r"[\s$,]*(?:(?:and|or)\b)?[\s$]*")
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]+)")
_FORMULA = re.compile(r"[-+±$\\(\[{√.]|\d|[A-Za-z](?:[\s$.)*]*$|\s*[=(^_\\+*/-])")
_HEADING = re.compile(
    r"(?i)\s*\**(?:\d+[.):]\s+\S|step\b|part\b|case\b|(?:the )?(?:final )?(?:answer|solution|conclusion)\b)"
)
MOST_WORDS = 6
"""Words that may follow a mark: more are a sentence."""


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of every closed box, in the order in which they open."""
    found, opened = [], []
    for token in _TOKEN.finditer(text):
        if token.group(1):
            found.append((token.start(), token.end(), token.group(1).rstrip(".,")))
        elif token.group()[-1] == "{" and token.group() != "\\{":
            opened.append(token)
        elif token.group() == "}" and opened:
            box = opened.pop()
            if box.group() != "{":
                found.append((box.start(), token.end(), text[box.end() : token.start()]))
    return sorted(found)


def _last_boxes(text: str) -> str | None:
    boxes = [box for box in _boxes(text) if box[2].strip()]
    if not boxes:
        return None
    start, _, content = boxes[-1]
    joined = {content.strip(): None}
    for before in reversed(boxes[:-1]):
        between = text[before[1] : start]
        if before[1] > start or not _JOINED.fullmatch(between) or not between.strip("$ \n\t"):
            break
        start = before[0]
        joined[before[2].strip()] = None
    return ", ".join(reversed(joined))


def _after_hashes(text: str) -> str | None:
    marks = list(_hash_marks(text))
    return marks[-1].group(1).strip(" \t*") if marks else None


def _hash_marks(text: str) -> Iterator[re.Match[str]]:
    """Where an answer and no heading follows ``####``: a formula or number of few words, or the last words of the text."""
    last = len(text.rstrip())
    for mark in _HASHES.finditer(text):
        said = mark.group(1).strip(" \t*")
        few = len(said) <= FAR and (_words(said) <= MOST_WORDS or "\\" in said)
        heading = _HEADING.match(said) or ". " in said
        if few and not heading and (_FORMULA.match(said) or mark.end() >= last):
            yield mark


_STATES = re.compile(
    r"(?i)\b(?:answer|option|choice)\b[ \t]{0,9}"
    r"(?:(?:,|(?:to|for|in|of)\b)[^.?:=\n]{0,60}?(?=\bis\b)|\([^()\n]{0,40}\)[ \t]{0,9})?[*_]{0,3}[ \t]{0,9}"
    r"(?:(?:is|are|would be|should be|must be)\b(?:[ \t]+(?:therefore|thus|then|simply|just|indeed|exactly|about"
    r"|equal to|given by|found to be))?[ \t]{0,9}[:=]?"
    r"|[:=]|(?=[*_ \t]{0,9}\n))"
)
"""How an answer is announced; a line that ends behind the word, a heading for example, announces what stands below."""
_MATH = re.compile(
    r"\$\$([^$]+)\$\$|\$(?!\d[^$\n]*[\s(=]\$\d)((?:[^$\n\\]|\\.)+)\$|\\\(((?:[^\\\n]|\\[^)])+)\\\)|\\\[((?:[^\\]|\\[^\]])+)\\\]"
)
_END = re.compile(
    r"(?<=[\w)}\]$%*°])(?:[.!;](?=\s|$)|,?\s(?:because|since|as|which|where|so|for|but|when|if|not|rather|instead)\b|\s[-–—]+\s)|(?<=\d)\s\((?!mod\b)(?=[A-Za-z]{2})|\?|\n"
)
_FILLING = re.compile(r"[ \t\n:*_#>]*")
FAR = 2000
"""Characters within which a statement, or the formula in it, ends."""
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*|__([^_\n]{1,200})__")
_CONCLUDES = re.compile(r"(?i)[*_ ]*(?:so|thus|therefore|hence|in total|in all|altogether|consequently)\b")
_VALUE = re.compile(
    r"(?:=|\b(?:is|are|equals|be|was|were|has|have|had|makes?|takes?|needs?|costs?|pays|paid|earns?|gets?))\s*:?\s*([^=\n]{1,100}?)[\s.]*$"
)
_SAYS_FIRST = re.compile(r"(?i)(?:yes|no|true|false)\b|(?:option |choice )?\(?[a-j]\)?\s*[).:]")
"""Answers with a reason or the choice's text behind them."""


_PICKED = re.compile(
    r"(?<!\b[Ii]f )(?<![Ww]hether )(?:\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer) [*_$]{0,3}\(?([A-J])\)?|\(([A-J])\)"
    r"|\b([A-J])(?=[*_$]{0,3} is (?:indeed )?the\b))[*_$]{0,3} is (?:therefore |thus |indeed )?(?:the )?(?:only )?(?:correct|right|best)"
    r"(?: one| answer| option| choice)?(?=[*_ ]{0,3}(?:[.!,;:)\n]|$|because\b|since\b|as\b))"
)
"""A choice that is said to be the correct one."""
_REMARK = re.compile(
    r"(?i)(?:indeed |also |quite |therefore |thus )?(?:correct|right|wrong|incorrect|valid|consistent|reasonable|plausible|sensible|exact"
    r"|rounded|unique|confirmed|verified|checked|helpful|clear|based|obtained|supported|independent)\b"
)
"""What is said of an answer, and is none itself."""
_THIS = re.compile(r"(?i)\b(?:this|that|such an?|any|each|every)\s+(?:final\s+)?$")


def _stated(text: str) -> str | None:
    remarked = None
    marks = [*_STATES.finditer(text), *_PICKED.finditer(text)]
    for match in sorted(marks, key=lambda mark: (mark.start(), mark.re is _PICKED), reverse=True):
        if match.re is _PICKED:
            return next(letter for letter in match.groups() if letter)
        said = _said(text, match.end())
        if not said or re.match(r"(?i)not\b|in\b|the\b.*\bof\b", said):
            continue
        about = _REMARK.match(said) and text[match.end() - 1] not in ":="
        if about or (not _FORMULA.match(said) and _THIS.search(text, max(0, match.start() - 30), match.start())):
            remarked = remarked or said
        else:
            return said
    return _concluded(text.rstrip()) or remarked


def _said(text: str, start: int) -> str | None:
    """What is said from a place on: one formula, or the rest of the sentence; None of a question."""
    start = _FILLING.match(text, start).end()  # type: ignore[union-attr] # it matches nothing, too
    formula = _MATH.match(text, start, start + FAR)
    end = _END.search(text, formula.end() if formula else start, start + FAR)
    if end is not None and end.group() == "?":
        return None
    if formula is not None and not _MATH.search(text, formula.end(), end.start() if end else start + FAR):
        return _inside(formula)
    said = text[start : end.start() if end else start + FAR].strip(" \t*_")
    value = None if _FORMULA.match(said) or _SAYS_FIRST.match(said) else _VALUE.search(said)
    if value is not None and _FORMULA.match(value.group(1)):  # There are 12 ways
        return value.group(1) if _words(value.group(1)) <= MOST_WORDS else None
    return said if _words(said) <= 2 * MOST_WORDS or "\\" in said else None


def _concluded(text: str) -> str | None:
    """The formula that the last line consists of, that stands in bold in the last sentence, or that a conclusion ends with."""
    text = text[-FAR:]
    displayed = list(_MATH.finditer(text)) if text.endswith(("$", "$.", "\\]", "\\)", "\\).")) else []
    if (
        displayed
        and displayed[-1].end() >= len(text) - 1
        and not text[: displayed[-1].start()].rpartition("\n")[2].strip(" \t*")
    ):
        return _inside(displayed[-1])
    line = text.rpartition("\n")[2]
    sentence = re.split(r"(?<=[^\d][.!?])\s+|(?<=\d[.!?])\s+(?=[A-Z])", line)[-1]
    bold = list(_BOLD.finditer(sentence))
    if bold:
        said = (bold[-1].group(1) or bold[-1].group(2)).strip(" .:")
        return said if _FORMULA.match(said) and not _HEADING.match(said) else None
    if not _CONCLUDES.match(sentence) or not sentence.endswith((".", "$", "\\)")):
        return None
    value = _VALUE.search(sentence.replace("\\(", "$").replace("\\)", "$"))
    said = value.group(1).strip("$ ") if value else ""
    return said if _FORMULA.match(said) and _words(said) <= MOST_WORDS and "$" not in said else None


def _words(text: str) -> int:
    return len(re.findall(r"[^\W\d_]{2,}", text))


def _inside(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group).strip()
