"""`remit serve`."""

import click

from sidecar import config_file as files
from sidecar.cli.output import config_option


@click.command()
@config_option
@click.option(
    "--take-over", is_flag=True, help="Take the doors and the journal of the sidecar that runs, which then ends."
)
def serve(config_file: str, take_over: bool) -> None:
    """Start the sidecar and stay in the foreground.

    Everything is named in one YAML file; `remit doctor --print-config` lists its fields. SIGHUP reloads, SIGTERM lets
    calls in progress end and stops; a second SIGTERM stops at once. An upgrade without a failed call: start the
    new one with --take-over while the old one runs (native listener).

    \b
    Example:
      remit serve --config remit.yaml
    """
    config = files.load(config_file)
    from sidecar.server import serve as run

    run(config, take_over=take_over)
