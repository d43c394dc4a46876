"""What is wrong with a configuration file, and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import msgspec


class Problem(msgspec.Struct, frozen=True):
    """One mistake. `path` leads to it as in `plugins[2].parameters.threshold` ("" is the whole file)."""

    source: str
    line: int
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.path}: {self.message}" if self.path else self._without_path()

    def _without_path(self) -> str:
        return f"{self.source}:{self.line}: {self.message}"


class ConfigurationError(Exception):
    """A file that is refused, with all that was found wrong with it, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        super().__init__("\n".join(map(str, self.problems)))


class Problems:
    """Collects the mistakes of one file, so that one run names them all."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._found: list[Problem] = []

    def add(self, line: int, path: str, message: str) -> None:
        self._found.append(Problem(self._source, line, path, message))

    def raise_any(self) -> None:
        """Raises ConfigurationError if there are any."""
        if self._found:
            raise ConfigurationError(self._found)


def suggestion(name: str, known: Iterable[str]) -> str:
    """`did you mean X?` for the nearest of `known`, or a list of them where none is near."""
    names = sorted(known)
    # Case is the commonest mistake in camelCase, and difflib counts it as a whole letter.
    by_folded = {candidate.casefold(): candidate for candidate in names}
    near = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    if near:
        return f"did you mean {by_folded[near[0]]}?"
    return f"known: {', '.join(names)}" if names else "none is known here"
