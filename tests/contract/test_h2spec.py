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
from epp.extproc.server import Http2Server


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
async def test_every_case_passes(h2spec: Path, tmp_path: Path, secure: bool) -> None:
    identity = tls.self_signed(datetime.datetime.now(datetime.UTC))
    context = tls.server_context(tls.Terms(identity)) if secure else None
    server = Http2Server({}, tls=context)
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
    assert not failed, output
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
