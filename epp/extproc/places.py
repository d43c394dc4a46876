"""How many connections a server holds, and which of them gives way when there is no place for another."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Holder = TypeVar("Holder", bound=Hashable)


class Places(Generic[Holder]):
    """`most` places, each taken by a holder that is at work or at rest.

    Who has been at rest for `rest_s` or longer gives way to who comes, the one that has been for the longest time first: a peer
    that opens connections and says nothing shuts nobody out. Each method takes the same time however many there are.
    """

    def __init__(self, most: int, rest_s: float) -> None:
        self._most = most
        self._rest_s = rest_s
        self._taken: set[Holder] = set()
        # In the order in which they came to rest, so that the first has been for the longest time.
        self._resting_since_s: dict[Holder, float] = {}

    def room(self, now_s: float) -> int:
        """For how many there may be a place. Above what is free, only those for whom somebody `gives_way` then will have one."""
        free = self._most - len(self._taken)
        return free if self._longest(now_s) is None else free + len(self._resting_since_s)

    def full(self) -> bool:
        return len(self._taken) >= self._most

    def gives_way(self, now_s: float) -> Holder | None:
        """Free the place of the holder that has been at rest for the longest time, and return it; None where none has been for long enough."""
        longest = self._longest(now_s)
        if longest is not None:
            self.leave(longest)
        return longest

    def take(self, holder: Holder, now_s: float) -> None:
        """Give it a place, at rest."""
        self._taken.add(holder)
        self.rest(holder, now_s)

    def work(self, holder: Holder) -> None:
        self._resting_since_s.pop(holder, None)

    def rest(self, holder: Holder, now_s: float) -> None:
        """From now on it is at rest. Nothing happens where it holds no place, or rests already."""
        if holder in self._taken:
            self._resting_since_s.setdefault(holder, now_s)

    def leave(self, holder: Holder) -> None:
        """Safe to call twice."""
        self._taken.discard(holder)
        self._resting_since_s.pop(holder, None)

    def _longest(self, now_s: float) -> Holder | None:
        for holder, since_s in self._resting_since_s.items():
            return holder if now_s - since_s >= self._rest_s else None
        return None
