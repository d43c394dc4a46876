"""`python -m bench.replica`: one simulated model server in a process of its own."""

from __future__ import annotations

import asyncio
import signal

import click
import msgspec
import uvloop

from bench.replica.http import Faults, Replica
from bench.replica.profiles import LAPTOP, Profile, profile, profile_names


@click.command()
@click.option("--port", default=8000, show_default=True, help="Port on 127.0.0.1; 0 takes a free one.")
@click.option(
    "--profile", "profile_name", type=click.Choice(profile_names()), default=LAPTOP, show_default=True, metavar="NAME",
    help="Which model on which GPU: 'laptop' or a model@GPU of bench/profiles/kernels.json.",
)  # fmt: skip
@click.option("--models", default="base", show_default=True, help="Base model and adapters, separated by commas.")
@click.option("--name", default="", help="Value of the response header x-replica. Default: 127.0.0.1:PORT.")
@click.option("--time-scale", default=1.0, show_default=True, help="Engine seconds to a second.")
@click.option("--stream-interval", default=1, show_default=True, help="Tokens to a chunk of a stream.")
@click.option("--real-size-page", is_flag=True, help="Pad /metrics to the 51 KB of a real vLLM.")
@click.option("--kv-blocks", type=int, help="KV blocks of 16 tokens instead of the profile's.")
@click.option("--max-num-seqs", type=int, help="Sequences at once instead of the profile's.")
@click.option("--max-loras", type=int, help="Adapter slots instead of the profile's.")
@click.option("--refuse-s", default=0.0, help="Fault: refuse connections for so long after the start.")
@click.option("--stall", is_flag=True, help="Fault: take requests, never answer.")
@click.option("--die-mid-stream", type=int, help="Fault: break streams after so many chunks.")
@click.option("--error-status", type=int, help="Fault: answer generations with this status.")
@click.option("--slow-metrics-s", default=0.0, help="Fault: /metrics takes so much longer.")
def main(
    port: int, profile_name: str, models: str, name: str, time_scale: float, stream_interval: int, real_size_page: bool,
    kv_blocks: int | None, max_num_seqs: int | None, max_loras: int | None,
    refuse_s: float, stall: bool, die_mid_stream: int | None, error_status: int | None, slow_metrics_s: float,
) -> None:  # fmt: skip
    """A simulated vLLM server. Prints `listening on 127.0.0.1:PORT` when it is ready; SIGTERM or Ctrl-C ends it.

    The faults can be changed while it runs: POST /faults with a JSON object of refuse_s, stall, die_mid_stream,
    error_status, slow_metrics_s.
    """
    overrides = {"num_blocks": kv_blocks, "max_num_seqs": max_num_seqs, "max_loras": max_loras}
    given = {key: value for key, value in overrides.items() if value is not None}
    chosen: Profile = msgspec.structs.replace(profile(profile_name), **given)
    faults = Faults(
        refuse_s=refuse_s,
        stall=stall,
        die_mid_stream=die_mid_stream,
        error_status=error_status,
        slow_metrics_s=slow_metrics_s,
    )

    async def serve() -> None:
        replica = Replica(
            chosen,
            models.split(","),
            name=name,
            time_scale=time_scale,
            stream_interval=stream_interval,
            real_size_page=real_size_page,
            faults=faults,
        )
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        try:
            listening = await replica.start(port)
        except OSError as error:
            raise click.ClickException(f"cannot listen on 127.0.0.1:{port}: {error.strerror}") from error
        print(f"listening on 127.0.0.1:{listening}", flush=True)
        await stop.wait()
        await replica.close()

    uvloop.run(serve())


if __name__ == "__main__":
    main()
