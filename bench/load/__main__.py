"""`python -m bench.load`: one workload against one address, a summary at the end."""

from __future__ import annotations

import sys

import click
import msgspec
import uvloop

from bench.load.client import Result, Sent, run
from bench.load.summary import summarize, table
from bench.load.workload import Mix, request_count, sessions


@click.command()
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="Where to send: http://host:port.")
@click.option("--seed", default=1, show_default=True, help="Equal seeds send equal requests.")
@click.option("--duration-s", default=9.0, show_default=True, help="For how long new sessions arrive.")
@click.option(
    "--sessions-per-s", default=8.0, show_default=True, help="Rate of arrival; a session has 1 to 4 requests."
)
@click.option("--tenants", default=32, show_default=True, help="Different system prompts of 4 to 8 KB.")
@click.option("--model", default="base", show_default=True, help="The base model.")
@click.option("--adapters", default="", help="LoRA adapters, separated by commas; half of the tenants use one.")
@click.option("--json", "as_json", is_flag=True, help="Print every result as a line of JSON instead of the summary.")
def main(
    url: str,
    seed: int,
    duration_s: float,
    sessions_per_s: float,
    tenants: int,
    model: str,
    adapters: str,
    as_json: bool,
) -> None:
    """Send chats with shared system prompts and growing turns, completions and LoRA requests; measure TTFT and caches."""
    mix = Mix(
        duration_s=duration_s,
        sessions_per_s=sessions_per_s,
        tenants=tenants,
        model=model,
        adapters=tuple(name for name in adapters.split(",") if name),
    )
    workload = sessions(mix, seed)
    done = 0

    def watch(event: Sent | Result) -> None:
        nonlocal done
        if isinstance(event, Sent):
            return
        done += 1
        if as_json:
            click.echo(msgspec.json.encode(event))
        elif sys.stderr.isatty():
            click.echo(f"\r{done}/{request_count(workload)} answered", nl=False, err=True)

    results = uvloop.run(run(workload, url.rstrip("/"), watch=watch))
    if not as_json:
        click.echo(("\r" if sys.stderr.isatty() else "") + table({url: summarize(results)}))
    raise SystemExit(any(not result.ok for result in results))


if __name__ == "__main__":
    main()
