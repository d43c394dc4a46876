"""Our HTTP/2 against h2spec, the conformance suite of the protocol, plain and over TLS."""

from __future__ import annotations

import asyncio
import datetime
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from epp.extproc import tls
from epp.extproc.http2 import Limits
from epp.extproc.server import Http2Server

PRESUMES_A_TABLE = {
    "Sends a dynamic table size update",
    "Sends multiple dynamic table size update",
    "Sends multiple CONTINUATION frames preceded by a HEADERS frame",
}
"""h2spec's client never looks at SETTINGS_HEADER_TABLE_SIZE: these cases fill or resize a table of 4,096 bytes, which
RFC 7541 (section 4.2) has us refuse where we announced none."""


async def run(*command: str, **environment: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment},
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("table_bytes", [0, 4096])
async def test_every_case_passes(h2spec: Path, tmp_path: Path, secure: bool, table_bytes: int) -> None:
    identity = tls.self_signed(datetime.datetime.now(datetime.UTC))
    context = tls.server_context(identity) if secure else None
    server = Http2Server({}, Limits(header_table_bytes=table_bytes), context)
    port = await server.start("127.0.0.1", 0)
    report = tmp_path / "h2spec.xml"
    options = ("--tls", "--insecure") if secure else ()
    try:
        _, output = await run(
            str(h2spec), "--host", "127.0.0.1", "--port", str(port), "--strict", "--junit-report", str(report), *options
        )
    finally:
        await server.stop(0.0)
    failed, skipped, passed = read_report(report)
    assert failed == (set() if table_bytes else PRESUMES_A_TABLE), output
    assert not skipped
    assert passed >= 140


def read_report(report: Path) -> tuple[set[str], set[str], int]:
    failed, skipped, passed = set(), set(), 0
    # h2spec writes control characters into its report that XML does not allow.
    text = re.sub(r"[^\t\n\r -\ud7ff]|&#x[0-9A-Fa-f]{1,2};", "?", report.read_text(errors="replace"))
    for case in ElementTree.fromstring(text).iter("testcase"):
        name = case.get("classname", "")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.add(name)
        elif case.find("skipped") is not None:
            skipped.add(name)
        else:
            passed += 1
    return failed, skipped, passed
