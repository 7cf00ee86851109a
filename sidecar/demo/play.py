"""`remit demo`: sets the stage, plays the scenes, prints what each shows, expected and actual."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import traceback

from rich.console import Console
from rich.table import Table

from sidecar.demo.authority import open_standing_tasks
from sidecar.demo.scenes import SCENES, Scene
from sidecar.demo.stage import Stage, short_folder

PIPE_COLUMNS = 160

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
            actual = _played(stage, scene)
        missed += _row(table, scene, actual)
        console.print(f"{'[green]ok  ' if actual == scene.expected else '[red]MISS'}[/] {scene.shows}", highlight=False)
    console.print(table)
    return missed


def _played(stage: Stage, scene: Scene) -> str:
    """What happened. A scene that broke is a miss like any other, and its trace stands in the stage's folder."""
    try:
        return scene.play(stage)
    except Exception as error:
        with (stage.folder / "scenes.log").open("a") as log:
            traceback.print_exc(file=log)
        return f"{type(error).__name__}: {error}"


def _row(table: Table, scene: Scene, actual: str) -> bool:
    missed = actual != scene.expected
    mark = "[red]MISS[/]" if missed else "[green]ok[/]"
    table.add_row(mark, scene.shows, scene.call, scene.expected, f"[red]{actual}[/]" if missed else actual)
    return missed


def main(stay: bool, listener: str = "native") -> int:
    """Play the demo; 0 when every scene went as expected. `stay` keeps everything up until SIGINT or SIGTERM,
    `listener` is the configuration's `listeners.listener`."""
    # A pipe has no width; the table is made for a wide one.
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    # However we are told to end, what we started ends with us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = short_folder()
    missed = 1
    try:
        with contextlib.ExitStack() as ended:
            with console.status("starting SVIDs, upstreams, collector, sidecar and Envoy"):
                stage = ended.enter_context(Stage(folder, tasks=True, overrides={"listeners.listener": listener}))
                open_standing_tasks(stage)
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
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
