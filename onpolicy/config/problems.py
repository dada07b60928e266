"""All problems of a config in one answer: checks report into a collection and go on with what is sound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from onpolicy.config.keys import under
from onpolicy.utils.errors import ConfigError


class Problems:
    """The problems found so far. One at a key hides later ones at or below it, which would only repeat it."""

    def __init__(self) -> None:
        self.errors: list[ConfigError] = []

    @property
    def keys(self) -> list[str]:
        """Where the problems are: each text begins with its full key."""
        return [text.partition(": ")[0] for error in self.errors for text in error.problems]

    def add(self, *found: str | ConfigError) -> None:
        """Reports problems, as texts or as errors."""
        known = self.keys  # what is reported together are problems of their own
        for error in (ConfigError(each) if isinstance(each, str) else each for each in found):
            new = [text for text in error.problems if not under(text.partition(": ")[0], known)]
            if new:
                self.errors.append(error if len(new) == len(error.problems) else type(error)(*new))

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Reports a ConfigError that is raised inside; what follows the block goes on."""
        try:
            yield
        except ConfigError as error:
            self.add(error)

    def sound(self, *keys: str) -> bool:
        """Whether no problem lies at, above or below any of these keys, so that what depends on them can be checked."""
        return not any(under(key, self.keys) or any(under(found, [key]) for found in self.keys) for key in keys)

    def readable(self, key: str) -> bool:
        """Whether no problem lies at or above this key; there may be some below it."""
        return not under(key, self.keys)

    def refuse(self) -> None:
        """Raises ConfigError with everything that was found."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise ConfigError(*(text for error in self.errors for text in error.problems))


@contextmanager
def collected(problems: Problems | None) -> Iterator[Problems]:
    """The caller's collection; without one, a collection of its own that is raised at the end of the block."""
    own = Problems() if problems is None else problems
    yield own
    if problems is None:
        own.refuse()
