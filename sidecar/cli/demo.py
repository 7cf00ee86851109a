"""`remit demo`."""

import importlib.util
import sys

import click

from sidecar.cli.output import Failure

NEEDED = ("envoy", "httpx2", "mcp", "uvicorn")  # of the extra `demo`, which the sidecar itself does without


@click.command()
@click.option("--stay", is_flag=True, help="Keep everything up afterwards and say how to talk to it.")
@click.option(
    "--listener",
    type=click.Choice(["native", "grpcio"]),
    default="native",
    show_default=True,
    help="Who serves the sidecar's doors.",
)
def demo(stay: bool, listener: str) -> None:
    """Play Remit in front of a real Envoy: agents call, and each call is printed with what it shows.

    Starts an MCP server, a web service, SVIDs, a collector, a sidecar and Envoy on this machine, and ends them. Exits 1
    when a call did not go as expected.

    \b
    Example:
      remit demo
      remit demo --stay
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise Failure(f"the demo needs {', '.join(missing)}: run make run, or pip install 'remit[demo]'")
    from sidecar.demo.play import main

    sys.exit(main(stay, listener))
