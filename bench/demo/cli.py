"""The command line of the demo."""

from __future__ import annotations

import asyncio
import io
import shutil
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from bench.demo.course import Options, Unanswered, demo
from bench.demo.interrupt import Interrupt, leave
from bench.demo.servers import Unusable, parse_servers
from bench.processes import StartError

PLAIN_WIDTH = 100
"""Columns where the output is no terminal."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--servers", default="", metavar="HOST:PORT,...", help="Real OpenAI servers to use instead of simulated ones."
)
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Where clients go; 0 takes free ports for all parts.",
)
@click.option(
    "--seconds",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    metavar="S",
    help="For how long new conversations arrive in each of the two runs.",
)
@click.option(
    "--rate",
    default=8.0,
    show_default=True,
    type=click.FloatRange(0.1, 1000),
    metavar="N",
    help="New conversations a second, of 1 to 4 requests each.",
)
@click.option("--seed", default=1, show_default=True, metavar="N", help="Equal seeds send equal requests.")
@click.pass_obj
def main(interrupt: Interrupt, servers: str, port: int, seconds: float, rate: float, seed: int) -> None:
    """Watch an endpoint picker at work, and what it gains.

    Starts four simulated model servers (each a vLLM with a 32B model on an A100), the picker and a real Envoy, all on
    127.0.0.1. Sends the same OpenAI traffic through them twice: chats that share system prompts and grow turn by turn,
    completions, three LoRA adapters, most of it streamed. The first time each request goes to the next server in turn (round
    robin), the second time to where the picker's default policy sends it; all parts are started afresh between the two. A live
    table shows who gets what, a comparison ends it. Takes about half a minute. Ctrl-C ends it at any moment; nothing is left
    running.

    While it runs, send requests of your own:

    \b
      curl -i localhost:8080/v1/completions -H 'content-type: application/json' \\
           -d '{"model": "base", "prompt": "Hello", "max_tokens": 5}'

    The header x-replica of the answer names the server. With --servers the model and its adapters are those that the servers
    list at /v1/models.

    Exit status: 0 when every request was answered, 1 when not, 130 when interrupted.
    """
    _tolerate_narrow_encodings()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    try:
        options = Options(servers=parse_servers(servers), port=port, seconds=seconds, rate=rate, seed=seed)
    except Unusable as error:
        raise click.UsageError(str(error)) from None
    try:
        status = asyncio.run(_in_charge(interrupt, options, console))
    except asyncio.CancelledError:
        leave()
    sys.exit(status)


async def _in_charge(interrupt: Interrupt, options: Options, console: Console) -> int:
    """The demo in a directory of its own, which stays only where its logs are of use. Returns the exit status."""
    task = asyncio.current_task()
    assert task is not None
    interrupt.cancels(task)
    directory = Path(tempfile.mkdtemp(prefix="epp-demo-"))
    keep = False
    try:
        await demo(options, console, directory)
    except (StartError, Unusable, Unanswered) as error:
        console.print(f"The demo failed: {error}", style="red", markup=False, soft_wrap=True)
        keep = _holds_something(directory)
        if keep:
            console.print(f"Logs of all parts, the picker's among them: {directory}", soft_wrap=True)
        return 1
    finally:
        if not keep:
            shutil.rmtree(directory)
    return 0


def _holds_something(directory: Path) -> bool:
    return any(directory.iterdir())


def _tolerate_narrow_encodings() -> None:
    """A sign that the terminal's encoding lacks is no reason to fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
