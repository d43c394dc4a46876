"""grpc.health.v1.Health over any of our transports: Check, Watch and List. Its messages have one field each, so they are
written by hand."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping

from epp.extproc.transport import OpenSession, Stream

Serving = Callable[[str], bool | None]
"""Whether the named service is serving; None for a name nobody knows. "" is the server as a whole."""

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
LIST = "/grpc.health.v1.Health/List"

_INVALID_ARGUMENT = 3
_NOT_FOUND = 5


class _State(enum.Enum):
    """HealthCheckResponse, encoded."""

    SERVING = b"\x08\x01"
    NOT_SERVING = b"\x08\x02"
    SERVICE_UNKNOWN = b"\x08\x03"


class Health:
    """Answers from `serving`. `services` are the names that List shows. Whoever changes what `serving` returns calls
    `changed`."""

    def __init__(self, serving: Serving, services: Iterable[str]) -> None:
        self._serving = serving
        self._services = tuple(services)
        self._watches: set[_Watch] = set()

    def routes(self) -> Mapping[str, OpenSession]:
        return {
            CHECK: lambda stream: _Unary(stream, self._check),
            LIST: lambda stream: _Unary(stream, self._list),
            WATCH: lambda stream: _Watch(stream, self.state, self._watches),
        }

    @property
    def watchers(self) -> int:
        return len(self._watches)

    def changed(self) -> None:
        """Tell watchers of what is different now."""
        for watch in tuple(self._watches):
            watch.look()

    def state(self, service: str) -> _State:
        serving = self._serving(service)
        if serving is None:
            return _State.SERVICE_UNKNOWN
        return _State.SERVING if serving else _State.NOT_SERVING

    def _check(self, stream: Stream, request: bytes) -> None:
        state = self.state(read_service(request))
        if state is _State.SERVICE_UNKNOWN:
            stream.close(_NOT_FOUND, "unknown service")
            return
        stream.send(state.value)
        stream.close()

    def _list(self, stream: Stream, request: bytes) -> None:
        stream.send(b"".join(_entry(name, self.state(name)) for name in self._services))
        stream.close()


class _Unary:
    """A call of one request: answers the first message, refuses a call that ends without one."""

    def __init__(self, stream: Stream, answer: Callable[[Stream, bytes], None]) -> None:
        self._stream = stream
        self._answer = answer

    def received(self, message: bytes) -> None:
        try:
            self._answer(self._stream, message)
        except ValueError as error:
            self._stream.close(_INVALID_ARGUMENT, str(error))

    def closed(self, clean: bool) -> None:
        self._stream.close(_INVALID_ARGUMENT, "no request message")


class _Watch:
    """Sends the state of one service at once and whenever it differs, until the peer goes."""

    def __init__(self, stream: Stream, state: Callable[[str], _State], watches: set[_Watch]) -> None:
        self._stream = stream
        self._state = state
        self._watches = watches
        self._service: str | None = None
        self._sent: _State | None = None

    def received(self, message: bytes) -> None:
        try:
            self._service = read_service(message)
        except ValueError as error:
            self._stream.close(_INVALID_ARGUMENT, str(error))
            return
        self._watches.add(self)
        self.look()

    def look(self) -> None:
        assert self._service is not None
        state = self._state(self._service)
        if state is not self._sent:
            self._sent = state
            self._stream.send(state.value)

    def closed(self, clean: bool) -> None:
        if not clean:
            self._watches.discard(self)
        elif self._service is None:
            self._stream.close(_INVALID_ARGUMENT, "no request message")

    def abandoned(self) -> None:
        self._watches.discard(self)


def read_service(request: bytes) -> str:
    """`HealthCheckRequest.service`; fields not known are skipped. Raises ValueError for what is no such message."""
    service = b""
    position = 0
    while position < len(request):
        key, position = _varint(request, position)
        if key & 7 == 0:
            _, position = _varint(request, position)
            continue
        size, position = (_FIXED[key & 7], position) if key & 7 in _FIXED else _length(key, request, position)
        if position + size > len(request):
            raise ValueError("health request is cut short")
        if key == _SERVICE:
            service = request[position : position + size]
        position += size
    return service.decode()


_SERVICE = 1 << 3 | 2
_FIXED = {1: 8, 5: 4}


def _length(key: int, data: bytes, position: int) -> tuple[int, int]:
    if key & 7 != 2:
        raise ValueError("health request has an unknown wire type")
    return _varint(data, position)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("health request is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("health request has a number that is too long")


def _entry(name: str, state: _State) -> bytes:
    """One entry of `HealthListResponse.statuses`, a map from name to HealthCheckResponse."""
    entry = _field(1, name.encode()) + _field(2, state.value)
    return _field(1, entry)


def _field(number: int, value: bytes) -> bytes:
    size = len(value)
    length = bytearray()
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes((number << 3 | 2,)) + bytes(length) + value
