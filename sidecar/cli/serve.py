"""`remit serve`."""

import click

from sidecar import config_file as files
from sidecar.cli.output import config_option


@click.command()
@config_option
def serve(config_file: str) -> None:
    """Start the sidecar and stay in the foreground.

    Everything is named in one YAML file; `remit doctor --print-config` lists its fields. SIGHUP reloads, SIGTERM lets
    calls in progress end and stops; a second SIGTERM stops at once.

    \b
    Example:
      remit serve --config remit.yaml
    """
    config = files.load(config_file)
    from sidecar.server import serve as run

    run(config)
