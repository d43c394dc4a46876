"""Chromium without a window, told what to do over its debugging protocol: opens a page and says what a reader and a network would have seen."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import matplotlib
import msgspec

_FLAGS = (
    "--headless=shell",
    # Tests run as root in containers, where its sandbox does not start, and open nothing but pages of our own making.
    *("--no-sandbox", "--no-zygote", "--disable-gpu", "--hide-scrollbars"),
    *("--disable-background-networking", "--remote-debugging-port=0"),
)

_LOOK_S = 0.02
_START_S = 60.0

_TOLD = """({
  width: innerWidth, content: document.documentElement.scrollWidth,
  title: document.title, heading: document.querySelector("h1")?.innerText ?? "",
  answer: document.querySelector(".answer")?.innerText ?? "",
  answer_bottom: document.querySelector(".answer")?.getBoundingClientRect().bottom ?? Infinity,
  ids: [...document.querySelectorAll("[id]")].map(one => one.id),
  plots: [...document.querySelectorAll("figure svg")].map(one => ({
    label: one.getAttribute("aria-label"), width: one.getBoundingClientRect().width, height: one.getBoundingClientRect().height,
    caption: one.closest("figure").querySelector("figcaption").innerText})),
  tables: [...document.querySelectorAll("table")].map(one => one.rows.length),
  clipped: [...document.querySelectorAll("body *")].filter(one => one.scrollWidth > one.clientWidth + 1 && one.clientWidth
    && getComputedStyle(one).overflowX === "hidden").length,
})"""


class Plot(msgspec.Struct, frozen=True):
    """A plot in the page, in CSS pixels as it is shown."""

    label: str
    width: float
    height: float
    caption: str


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A page as it was shown. `width` is the window's, `content` what the page needs: more, where it has to be pushed sideways.

    `answer` is what the page says first, and `answer_bottom` where it ends. `complaints` are of the console, `requests` all that the page asked of
    anybody, its own address left out.
    """

    width: float
    content: float
    title: str
    heading: str
    answer: str
    answer_bottom: float | None
    ids: list[str]
    plots: list[Plot]
    tables: list[int]
    clipped: int
    complaints: list[str] = []
    requests: list[str] = []


class Browser:
    """`directory` holds `chromium` and, in `lib`, the libraries that it needs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def look(self, page: Path, *, width: int, height: int = 900) -> Seen:
        """The page in a window of that size, each time in a browser of its own."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
            async with self._running(Path(home)) as port, aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                    (tab,) = (one for one in await answer.json() if one["type"] == "page")
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as wire:
                    return await _look(_Tab(wire), page.as_uri(), width, height)

    @contextlib.asynccontextmanager
    async def _running(self, home: Path) -> AsyncIterator[str]:
        """The port that it listens on."""
        fonts = home / "fonts.conf"
        fonts.write_text(
            f"<fontconfig><dir>{matplotlib.get_data_path()}/fonts/ttf</dir><cachedir>{home}/fonts</cachedir></fontconfig>"
        )
        process = await asyncio.create_subprocess_exec(
            self._directory / "chromium",
            *_FLAGS,
            f"--user-data-dir={home}",
            "about:blank",
            env={**os.environ, "LD_LIBRARY_PATH": str(self._directory / "lib"), "FONTCONFIG_FILE": str(fonts)},
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(_START_S):
                told = home / "DevToolsActivePort"
                while not (told.exists() and "\n" in told.read_text()):
                    assert process.returncode is None, f"Chromium ended with {process.returncode}"
                    await asyncio.sleep(_LOOK_S)
            yield told.read_text().splitlines()[0]
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


class _Tab:
    """One page's end of the debugging protocol."""

    def __init__(self, wire: aiohttp.ClientWebSocketResponse) -> None:
        self._wire = wire
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    async def ask(self, method: str, **parameters: object) -> Any:
        number = next(self._numbers)
        await self._wire.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._wire.receive_json()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    async def until(self, method: str) -> None:
        while not any(one["method"] == method for one in self.events):
            self.events.append(await self._wire.receive_json())


async def _look(tab: _Tab, url: str, width: int, height: int) -> Seen:
    for domain in ("Page", "Runtime", "Log", "Network"):
        await tab.ask(f"{domain}.enable")
    phone = width < 600
    await tab.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
    await tab.ask("Page.navigate", url=url)
    await tab.until("Page.loadEventFired")
    told = await tab.ask("Runtime.evaluate", expression=f"JSON.stringify({_TOLD})", returnByValue=True)
    seen = msgspec.json.decode(told["result"]["value"], type=Seen)
    asked = [one["params"]["request"]["url"] for one in tab.events if one["method"] == "Network.requestWillBeSent"]
    return msgspec.structs.replace(
        seen,
        complaints=[str(one["params"]) for one in tab.events if one["method"] in _COMPLAINTS],
        requests=[one for one in asked if one != url and not one.startswith("data:")],
    )


_COMPLAINTS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
