"""Bearer tokens of the metrics port: a file of their hashes, so that reading it gives nobody a token."""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path

_HASH = re.compile(r"[0-9a-fA-F]{64}")


class TokenError(ValueError):
    """The token file cannot be used. The message names the file and the line, never what the line says."""


def read_hashes(path: Path) -> tuple[bytes, ...]:
    """SHA-256 digests in the order of their lines: hex, blank lines and what follows `#` apart. Raises TokenError.

    A file without any is refused: it would shut out everybody, and an emptied file is more often a mistake than a wish.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise TokenError(f"cannot read the token file {path}: {reason}") from error
    said = [(number, line.partition("#")[0].strip()) for number, line in enumerate(lines, 1)]
    wrong = [number for number, text in said if text and not _HASH.fullmatch(text)]
    if wrong:
        # The line is most likely a token that somebody forgot to hash.
        raise TokenError(f"{path}:{wrong[0]}: not a SHA-256 in hex; make one by: printf %s TOKEN | sha256sum")
    hashes = tuple(bytes.fromhex(text) for _, text in said if text)
    if not hashes:
        raise TokenError(f"the token file {path} has no hash: nobody could read metrics")
    return hashes


class BearerTokens:
    """Who may read metrics. The caller decides how often to `look` at the file. Raises TokenError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hashes = read_hashes(path)

    def look(self) -> bool:
        """True when other tokens count from now on. Raises TokenError when the file cannot be used; the last good ones stay."""
        found = read_hashes(self._path)
        changed = found != self._hashes
        self._hashes = found
        return changed

    def admits(self, authorization: str) -> bool:
        """Whether an Authorization header's value carries a token of the file. Takes the same time whichever hash matches.

        Tokens are long and random (the operator's part): their plain SHA-256 cannot be guessed back.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return False
        shown = hashlib.sha256(token.strip().encode("latin-1", "replace")).digest()
        return sum(hmac.compare_digest(shown, known) for known in self._hashes) > 0
