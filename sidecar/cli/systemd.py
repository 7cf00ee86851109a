"""`remit systemd`."""

import os
import sys

import click

from sidecar import config_file as files
from sidecar.cli.output import config_option


@click.command()
@config_option
@click.option("--user", default="remit", show_default=True, help="Ordinary user that runs the sidecar; it must exist.")
@click.option("--name", default="remit", show_default=True, help="Name of the units.")
@click.option("--dir", "folder", type=click.Path(exists=True, file_okay=False), help="Write the units here.")
def systemd(config_file: str, user: str, name: str, folder: str | None) -> None:
    """Print systemd units for this configuration: a hardened service, and a socket for each door.

    systemd opens the doors, so callers wait instead of failing while the sidecar restarts. The service is up
    (`systemctl start` returns) once calls are decided.

    \b
    Example:
      remit systemd --config /etc/remit/remit.yaml
      remit systemd --config /etc/remit/remit.yaml --dir /etc/systemd/system
    """
    from sidecar.systemd_units import units

    made = units(files.load(config_file), program=_program(), name=name, user=user)
    for file, text in made.items():
        if folder is None:
            click.echo(f"# {file}\n{text}")
        else:
            with open(os.path.join(folder, file), "w", encoding="utf-8") as out:
                out.write(text)
            click.echo(os.path.join(folder, file))


def _program() -> list[str]:
    """How this very `remit` is started."""
    installed = os.path.join(os.path.dirname(sys.executable), "remit")
    return [installed] if os.access(installed, os.X_OK) else [sys.executable, "-m", "sidecar.cli"]
