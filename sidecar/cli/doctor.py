"""`remit doctor`."""

import logging
from typing import TYPE_CHECKING

import click
import yaml

from sidecar import config_docs
from sidecar import config_file as files
from sidecar.cli.control import live_status
from sidecar.cli.output import EXIT_NO, Failure, config_option, input_text, mark, table
from sidecar.envoy_config import warnings

if TYPE_CHECKING:
    from sidecar.doctor import Finding


@click.command()
@config_option
@click.option("--print-config", is_flag=True, help="Print every field of the configuration and end.")
@click.option(
    "--envoy-config",
    "envoy_file",
    type=click.Path(exists=True, dir_okay=False),
    help="Judge this Envoy configuration as well.",
)
@click.option("--libraries", is_flag=True, help="Only libraries and kernel; needs no configuration.")
def doctor(config_file: str, print_config: bool, envoy_file: str | None, libraries: bool) -> None:
    """Look at configuration, sockets, identity, policies, upstream and libraries, and say what to do.

    Libraries and kernel are tried, not only named: what an attacker would send to them must be refused. A line is ok,
    no (wrong or unsafe) or ? (it could not be tried).

    With --envoy-config FILE it also warns of settings that open the door, above all `failure_mode_allow: true`.
    Exits 1 when something is wrong; what could not be tried alone does not change the exit status.

    \b
    Example:
      remit doctor --config remit.yaml --envoy-config envoy.yaml
      remit doctor --print-config
      remit doctor --libraries
    """
    if print_config:
        click.echo(reference(), nl=False)
        return
    findings = _examined(None if libraries else config_file)
    shown = {True: mark(True), False: mark(False), None: "-"}
    table(
        "remit doctor",
        ("what", "", "state", "to do"),
        ((f.what, "?" if f.unknown else shown[f.good], f.state, f.advice) for f in findings),
    )
    wrong = [f.what for f in findings if f.good is False]
    if unknown := [f.what for f in findings if f.unknown]:
        click.echo(f"remit: could not be judged: {', '.join(unknown)}", err=True)
    if envoy_file:
        found = warnings(input_text(envoy_file))
        table(
            envoy_file, ("", "finding"), [(mark(False), line) for line in found] or [(mark(True), "no unsafe setting")]
        )
        wrong += ["the Envoy configuration"] if found else []
    if wrong:
        raise Failure(f"to mend: {', '.join(wrong)}", EXIT_NO)


def _examined(config_file: str | None) -> "list[Finding]":
    from sidecar import doctor

    # What a probe makes our own parts say is in its verdict.
    logging.getLogger().addHandler(logging.NullHandler())
    if config_file is None:
        return list(doctor.libraries(None))
    config = files.load(config_file)
    return list(doctor.examine(config, live_status(config.control.socket)))


def reference() -> str:
    """All fields as commented YAML: indentation shows the section, a comment gives unit and meaning."""
    lines = []
    for field in config_docs.documentation():
        depth = field.path.count(".")
        name = field.path.rpartition(".")[2]
        unit = f" [{field.unit}]" if field.unit else ""
        item = "- " if field.path.endswith("[]") else ""
        default = f" {yaml_text(field.default)}" if field.default else ""
        lines.append(f"{'  ' * depth}{item}{name}:{default}".ljust(44) + f" # {field.text}{unit}")
    return "\n".join(lines) + "\n"


def yaml_text(default: str) -> str:
    """A default as it would stand in the file; `required` and `absent` are words for people."""
    return (
        default
        if default in ("required", "absent")
        else yaml.safe_dump(yaml.safe_load(default), default_flow_style=True).strip().removesuffix("...").strip()
    )
