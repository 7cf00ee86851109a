"""`remit demo`: sets the stage, plays the scenes, prints what each shows, expected and actual."""

from __future__ import annotations

import shutil
import signal
import sys

from rich.console import Console
from rich.table import Table

from sidecar.demo.scenes import SCENES, Scene
from sidecar.demo.stage import Stage, short_folder

HOW_TO_TALK = """\
Everything stays up until Ctrl-C. In another terminal, from this folder:

  ask over Envoy      curl -k --cert {svids}/alice/svid.pem --key {svids}/alice/key.pem \\
                        -H 'host: api.example.org' https://127.0.0.1:{port}/v1/rates
  what is in force    .venv/bin/remit status --config {config}
  follow decisions    .venv/bin/remit decisions tail --config {config}
  change a policy     edit {policy}/policies/, then .venv/bin/remit reload --config {config}
  is all well?        .venv/bin/remit doctor --config {config}
  Envoy's own view    {admin}
  logs                {folder}/*.log
"""


def play(stage: Stage, console: Console) -> int:
    """How many scenes did not go as expected."""
    missed = 0
    table = Table(title="Remit: may this agent do this, now?", show_lines=False)
    for heading in ("", "what it shows", "call", "expected", "actual"):
        table.add_column(heading, overflow="fold")
    for number, scene in enumerate(SCENES, 1):
        with console.status(f"{number} of {len(SCENES)}: {scene.shows}"):
            actual = scene.play(stage)
        missed += _row(table, scene, actual)
        console.print(f"{'[green]ok  ' if actual == scene.expected else '[red]MISS'}[/] {scene.shows}", highlight=False)
    console.print(table)
    return missed


def _row(table: Table, scene: Scene, actual: str) -> bool:
    missed = actual != scene.expected
    mark = "[red]MISS[/]" if missed else "[green]ok[/]"
    table.add_row(mark, scene.shows, scene.call, scene.expected, f"[red]{actual}[/]" if missed else actual)
    return missed


def main(stay: bool) -> int:
    """Play the demo; 0 when every scene went as expected. `stay` keeps everything up until SIGINT or SIGTERM."""
    console = Console()
    folder = short_folder()
    missed = 1
    try:
        with console.status("starting SVIDs, upstreams, collector, sidecar and Envoy"):
            stage = Stage(folder).__enter__()
        with stage:
            missed = play(stage, console)
            console.print(f"{len(SCENES) - missed} of {len(SCENES)} scenes as expected", style="bold")
            if stay:
                _stay(stage, console)
    finally:
        if missed:
            sys.stderr.write(f"logs are kept in {folder}\n")
        else:
            shutil.rmtree(folder)
    return 1 if missed else 0


def _stay(stage: Stage, console: Console) -> None:
    ports = {"port": stage.envoy.ports["main"], "admin": stage.envoy.admin, "folder": stage.folder}
    text = HOW_TO_TALK.format(svids=stage.svids, config=stage.config, policy=stage.policy, **ports)
    console.print(text, highlight=False, soft_wrap=True)
    try:
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    except KeyboardInterrupt:
        return
