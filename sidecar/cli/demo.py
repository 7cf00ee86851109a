"""`remit demo`."""

import sys

import click


@click.command()
@click.option("--stay", is_flag=True, help="Keep everything up afterwards and say how to talk to it.")
def demo(stay: bool) -> None:
    """Play Remit in front of a real Envoy: agents call, and each call is printed with what it shows.

    Starts an MCP server, a web service, SVIDs, a collector, a sidecar and Envoy on this machine, and ends them. Exits 1
    when a call did not go as expected.

    \b
    Example:
      remit demo
      remit demo --stay
    """
    from sidecar.demo.play import main

    sys.exit(main(stay))
