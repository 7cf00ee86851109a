"""`remit envoy-config`."""

import click

from fastpath import spiffe_id
from sidecar import config_file as files
from sidecar import envoy_config as envoy
from sidecar._proto.remit.control.v1 import control_pb2
from sidecar.cli.control import live_status
from sidecar.cli.output import Failure, config_option
from sidecar.config import Config, ExtAuthz
from sidecar.errors import SidecarError

DOOR = "listeners.ext_authz."
LOG_DOOR = "listeners.access_log."


@click.command("envoy-config")
@config_option
@click.option("--sidecar-id", metavar="ID", help="SPIFFE ID of the sidecar; default: asked of the running one.")
@click.option("--certificate", type=click.Path(), help="Envoy's SVID (PEM), instead of SDS from the Workload API.")
@click.option("--key", type=click.Path(), help="Its private key (PEM).")
@click.option("--bundle", type=click.Path(), help="Roots of the sidecar's trust domain (PEM).")
def envoy_config(config_file: str, sidecar_id: str, certificate: str, key: str, bundle: str) -> None:
    """Print the Envoy filter and clusters for this sidecar.

    The settings fail closed and send what the rules in force need: a body is buffered only when a rule reads one.
    Certificates come from the Workload API's SDS unless files are named.

    \b
    Example:
      remit envoy-config --config remit.yaml > envoy-remit.yaml
      remit envoy-config --certificate svid.pem --key svid.key --bundle bundle.pem
    """
    config = files.load(config_file)
    if config.listeners.ext_authz is None:
        raise Failure("`listeners.ext_authz` is not configured, so Envoy has no door; add it to the configuration")
    given = (certificate, key, bundle)
    if any(given) and not all(given):
        raise click.UsageError("--certificate, --key and --bundle belong together")
    live = live_status(config.control.socket)
    identity = sidecar_id or (live.spiffe_id if live else "") or config.identity.spiffe_id
    if not identity and not config.listeners.ext_authz.socket:
        raise Failure("the sidecar's SPIFFE ID is not known; start it, or name it with --sidecar-id")
    if identity and not spiffe_id.parse(identity).path:
        raise Failure(f"`{identity}` names a trust domain, not a workload; write spiffe://trust-domain/path")
    tls = envoy.TlsFiles(*given) if all(given) else None
    extras = list(live.extras_read) if live and live.generation else _stored_extras(config)
    text = envoy.render(
        config,
        endpoint=_endpoint(config.listeners.ext_authz, DOOR, live),
        sidecar_id=identity,
        extras_read=extras,
        tls=tls,
        log_endpoint=_endpoint(config.listeners.access_log, LOG_DOOR, live),
    )
    click.echo(text, nl=False)


def _endpoint(door: ExtAuthz | None, name: str, live: control_pb2.StatusResponse | None) -> str:
    """Where the door is: as the running sidecar bound it, else as configured; empty when there is none."""
    if door is None:
        return ""
    bound = next((one.address for one in live.listeners if one.name.startswith(name)), "") if live else ""
    return bound or (f"unix:{door.socket}" if door.socket else door.address)


def _stored_extras(config: Config) -> list[str]:
    """What the rules of the last published generation read; every body, when there is none yet."""
    from sidecar.policy.store import GenerationStore

    try:
        with GenerationStore(config.policy.store).open_current(strict=True) as table:
            return table.extras_read
    except SidecarError:
        click.echo("remit: no generation is published yet, so the body is buffered on every route", err=True)
        return ["input"]
