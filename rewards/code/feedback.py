"""What a failed test says, as text for a teacher: the headings and lengths of SDPO's rich feedback (arXiv 2601.20802, its code)."""

from __future__ import annotations

MOST = 2000
"""Characters of a feedback."""
SHOWN, LINES = 250, 8
"""Characters of an output and of a line of an input; lines of an input."""
NO_PROGRAM = "Incorrect Format: Put your code inside a ```python ... ``` block."
TRUNCATED = (
    "Truncated Attempt: Your previous response was too long and truncated because it reached the maximum response length. "
    "Try again with a shorter response."
)


def wrong_answer(number: int, given: str, got: str, expected: str) -> str:
    """Of the test with this number, from 1."""
    return _joined(
        f"Test Case {number}: Wrong Answer",
        f"Input\n{_lines(given)}",
        f"Output\n{_cut(got)}",
        f"Expected\n{_cut(expected)}",
    )


def runtime_error(error: str, given: str) -> str:
    """Of the program as it is compiled and run."""
    return _joined(f"Runtime Error\n{error}", f"Last Executed Input\n{_lines(given)}")


def limit_exceeded(what: str, given: str) -> str:
    """``what``: Time or Output."""
    return _joined(f"{what} Limit Exceeded", f"Last Executed Input\n{_lines(given)}")


def _joined(*parts: str) -> str:
    """Text that can be encoded: a program can put half a character into an error."""
    return "\n\n".join(parts)[:MOST].rstrip().encode("utf-8", "replace").decode()


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def _lines(text: str) -> str:
    lines = text.splitlines()
    more = [f"... ({len(lines) - LINES} more lines)"] if len(lines) > LINES else []
    return "\n".join([*map(_cut, lines[:LINES]), *more])
