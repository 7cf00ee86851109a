"""One HTML page of all benches: what was asked for and what came out, pictures, the machine, and how to do it again.

The page needs nothing beside itself: pictures are in it, and there is no script.
"""

from __future__ import annotations

import html
import json
import shlex
from pathlib import Path
from typing import Any

import click

from bench.plots import pictures

Json = dict[str, Any]
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .2rem .8rem; border-bottom: 1px solid #d8dee4; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums } .met { color: #116329 } .missed { color: #a40e26 }
img { max-width: 100%; margin: .5rem 0 } code { font-size: .85em; overflow-wrap: anywhere } summary { cursor: pointer }
"""
TITLES = {
    "check": "What does a call cost beside HTTP/2 itself?",
    "envoy": "What does asking us cost an Envoy?",
    "attack": "What do others notice of an attack?",
    "authority": "What does live authority cost a decision, and a change of it a disk?",
}


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested results as rows: {"a": {"b": 1}} is {"a.b": 1}."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for inner, one in value.items() for key, leaf in flat(one, f"{name}.{inner}".strip(".")).items()}


def _text(value: Any) -> str:
    return f"{value:,.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else html.escape(str(value))


def _table(rows: dict[str, Any]) -> str:
    cells = (f'<tr><td>{html.escape(key)}</td><td class="n">{_text(value)}</td></tr>' for key, value in rows.items())
    return f"<table>{''.join(cells)}</table>"


def met(value: float, how: str, goal: float) -> bool:
    """Whether a figure is as asked for."""
    return value <= goal if how == "at most" else value >= goal


def _goals(made: Json) -> str:
    rows = []
    for key, (how, goal) in made.get("goals", {}).items():
        value = made["results"].get(key)
        if value is None:
            verdict = "<td>not measured</td><td></td>"
        else:
            name = "met" if met(value, how, goal) else "missed"
            verdict = f'<td class="n">{_text(value)}</td><td class="{name}">{name}</td>'
        rows.append(f"<tr><td>{html.escape(key)}</td><td>{how} {goal}</td>{verdict}</tr>")
    return (
        f"<table><tr><th>figure</th><th>goal</th><th>measured</th><th></th></tr>{''.join(rows)}</table>" if rows else ""
    )


def _details(title: str, body: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{body}</details>" if body else ""


def _commands(made: Json) -> str:
    servers = "".join(
        f"<tr><td>{html.escape(name)}</td><td><code>{html.escape(shlex.join(command))}</code></td></tr>"
        for name, command in made.get("servers", {}).items()
    )
    return f"<table>{servers}</table>" if servers else ""


def _section(name: str, made: Json) -> str:
    title = TITLES.get(made.get("question", ""), name)
    images = "".join(f'<img alt="" src="{picture}">' for picture in pictures(made))
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in made.get("notes", []))
    command = html.escape(str(made.get("machine", {}).get("command", "")))
    return "".join(
        (
            f"<h2>{html.escape(title)}</h2>",
            f"<p><code>{command}</code></p>" if command else "",
            _goals(made),
            notes,
            images,
            _details("all figures", _table(flat(made["results"]))),
            _details("hottest functions, µs of CPU per call", _functions(made)),
            _details("the servers' commands", _commands(made)),
            _details("the machine", _table(flat(made.get("machine", {})))),
        )
    )


def _functions(made: Json) -> str:
    return "".join(
        f"<h4>{html.escape(name)}</h4>{_table(profile['functions_us'])}"
        for name, profile in made.get("profiles", {}).items()
        if profile["functions_us"]
    )


def page(reports: dict[str, Json]) -> str:
    """The whole page."""
    machine: Json = next((made["machine"] for made in reports.values() if "machine" in made), {})
    head = f"{machine.get('cpu', '')}, {machine.get('cores', '')} cores, {machine.get('system', '')}"
    sections = "".join(_section(name, made) for name, made in reports.items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Remit: benches</title>'
        f"<style>{STYLE}</style><h1>Remit: benches</h1><p>{html.escape(head)}. Times on shared machines drift: trust "
        "the ratios, which compare rounds of one run, and only figures of one page with each other.</p>"
        f"{sections}</html>\n"
    )


@click.command()
@click.option(
    "--html", "out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Write the page here."
)
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def report(out: Path, reports: tuple[Path, ...]) -> None:
    """Make one HTML page, which needs nothing beside itself, of the JSON files that the benches wrote."""
    out.write_text(page({path.stem: json.loads(path.read_text()) for path in reports}), encoding="utf-8")
    click.echo(f"wrote {out}")
