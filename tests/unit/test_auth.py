"""Who may read metrics, by a file of hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from epp.observe.auth import BearerTokens, TokenError, read_hashes


def hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def test_a_token_of_the_file_is_admitted_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# prometheus\n{hashed('first')}\n\n  {hashed('second').upper()}  # grafana\n")
    tokens = BearerTokens(file)
    assert tokens.admits("Bearer first")
    assert tokens.admits("bearer second")
    for shown in ("", "first", "Bearer", "Bearer ", "Bearer third", "Basic first", f"Bearer {hashed('first')}"):
        assert not tokens.admits(shown)


def test_bytes_beyond_ascii_are_a_wrong_token(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(hashed("first"))
    assert not BearerTokens(file).admits("Bearer fïrst\u20ac")


@pytest.mark.parametrize("text", ["planted-token", hashed("x")[:-1], f"{hashed('x')} {hashed('y')}", "", "# none\n"])
def test_what_is_no_hash_is_refused_without_being_repeated(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    with pytest.raises(TokenError, match="tokens") as refused:
        read_hashes(file)
    assert "planted" not in str(refused.value)


def test_a_mistake_is_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# one\n{hashed('x')}\nplanted-token\n")
    with pytest.raises(TokenError, match="tokens:3:"):
        BearerTokens(file)


def test_changes_count_and_the_last_good_ones_stay(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(hashed("first"))
    tokens = BearerTokens(file)
    assert not tokens.look()
    file.write_text(hashed("second"))
    assert tokens.look()
    assert tokens.admits("Bearer second")
    assert not tokens.admits("Bearer first")
    file.write_text("oops")
    with pytest.raises(TokenError):
        tokens.look()
    file.unlink()
    with pytest.raises(TokenError):
        tokens.look()
    assert tokens.admits("Bearer second")
