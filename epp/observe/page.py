"""A page of metrics: families of ours, then what is known of every Python process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from epp.observe.text import Family, write


class MetricsPage:
    """Made anew from `families` whenever somebody asks."""

    def __init__(self, families: Callable[[], Iterable[Family]]) -> None:
        self._families = families
        self._process = CollectorRegistry(auto_describe=False)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._process)

    def pieces(self, accept: str) -> tuple[str, Iterator[bytes]]:
        """The whole page in the format that `accept` (an HTTP header value) asks for: content type, and its pieces.

        A piece is one metric family: a page of many models takes tens of milliseconds to write, and a caller on an
        event loop can do something else between two pieces.
        """
        encode, content_type = choose_encoder(accept)
        return content_type, self._write(encode, content_type.startswith("application/openmetrics-text"))

    def _write(self, encode: Callable[[CollectorRegistry], bytes], openmetrics: bool) -> Iterator[bytes]:
        for family in self._families():
            yield write(family, openmetrics=openmetrics).encode()
        # With the end mark of OpenMetrics.
        yield encode(self._process)
