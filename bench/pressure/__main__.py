"""`python -m bench.pressure`: the same overload with and without flow control; a JSON and a PNG in bench/results/."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path

import click

from bench.cost.report import RESULTS, machine
from bench.pressure.report import WITH, WITHOUT, Report, Seen, seen, served_tokens_per_s, write
from bench.pressure.scene import measure
from bench.pressure.workload import Offer, requests


@click.command()
@click.option("--seed", default=1, show_default=True, help="Equal seeds send equal requests.")
@click.option("--duration-s", default=45.0, show_default=True, help="For how long requests arrive.")
@click.option("--requests-per-s", default=25.0, show_default=True, help="Of all flows together.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=RESULTS,
    show_default="bench/results",
    help="Where to write.",
)
def main(seed: int, duration_s: float, requests_per_s: float, into: Path) -> None:
    """Send more than two simulated servers can take through Envoy, and show who waited how long."""
    offer = Offer(duration_s=duration_s, requests_per_s=requests_per_s)
    flows = requests(offer, seed)
    runs: dict[str, tuple[Seen, ...]] = {}
    served: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in (WITHOUT, WITH):
            results = measure(Path(directory) / name.replace(" ", "-"), flows, flow_control=name == WITH)
            runs[name] = tuple(seen(flow, of_flow) for flow, of_flow in results.items())
            served[name] = round(served_tokens_per_s(results), 1)
            click.echo(f"{name}: {served[name]:,.0f} of {offer.tokens_per_s:,.0f} prompt tokens/s")
            for one in runs[name]:
                click.echo(
                    f"  {one.objective:7} {one.tenant:5} {one.requests:4} requests, {one.answered:4} answered, {one.refused:4} refused, "
                    f"{one.failed} failed; TTFT p50 {one.ttft_p50_s} s, p90 {one.ttft_p90_s} s"
                )
    report = Report(
        offer=offer,
        seed=seed,
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=machine(),
        offered_tokens_per_s=offer.tokens_per_s,
        served_tokens_per_s=served,
        runs=runs,
    )
    into.mkdir(parents=True, exist_ok=True)
    write(report, into)


if __name__ == "__main__":
    main()
