"""The command `remit`. Each command stands in the file of its noun; what is heavy is imported when it runs."""

import click

from sidecar.cli.agent import agent, authority
from sidecar.cli.approvals import approve, deny, pending, review
from sidecar.cli.control import reload, status
from sidecar.cli.decisions import collect, decisions
from sidecar.cli.demo import demo
from sidecar.cli.doctor import doctor
from sidecar.cli.entity import entity
from sidecar.cli.envoy import envoy_config
from sidecar.cli.output import Commands
from sidecar.cli.policy import policy
from sidecar.cli.revoke import lift, owner, revoke
from sidecar.cli.serve import serve
from sidecar.cli.systemd import systemd
from sidecar.cli.task import task
from sidecar.version import VERSION


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="remit", message="%(prog)s %(version)s")
def main() -> None:
    """Remit answers one question for every action of an AI agent: may this agent do this, now?

    It is a sidecar beside an agent, asked by Envoy (ext_authz) and by the agent itself (gRPC). Policies are Cedar.

    \b
    A first look:
      remit demo                               see it work, with a real Envoy
      remit doctor --print-config              every field of the configuration
      remit policy check policies/             is this a policy set?
      remit serve --config remit.yaml          start the sidecar
      remit envoy-config --config remit.yaml   the Envoy side
      remit task open --help                   let an agent work
      remit revoke agent SPIFFE_ID             and stop it

    Exit codes: 0 done; 1 the answer is no (a test missed, a reload was refused, a check found problems); 2 wrong
    usage; 3 configuration or policy cannot be used; 4 the sidecar or collector does not answer.
    """


_CONTROL = (serve, reload, status, policy, entity, collect, decisions, demo, envoy_config, systemd, doctor)
_AUTHORITY = (task, revoke, lift, pending, approve, deny, review, owner, agent, authority)
for _command in (*_CONTROL, *_AUTHORITY):
    main.add_command(_command)
