"""`remit policy put`, `remove`, `link`, ..: change one policy or link without publishing the whole set again."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from sidecar.cli.in_force import compiling, in_force, say_generation, say_unneeded, section_of, standing
from sidecar.cli.output import INPUT_BYTES_MAX, Failure, config_option, input_text, table
from sidecar.cli.policy import policy

FILES_HELP = "`-` reads standard input."


def texts_of(files: Sequence[str]) -> list[Any]:
    """The texts of files, or of standard input for `-`, by their names."""
    from sidecar.policy.lexer import PolicyText

    if files.count("-") > 1:
        raise click.UsageError("standard input can be read once")
    return [
        PolicyText("standard input", _stdin()) if name == "-" else PolicyText(name, input_text(name)) for name in files
    ]


def _stdin() -> str:
    raw = sys.stdin.buffer.read(INPUT_BYTES_MAX + 1)
    if len(raw) > INPUT_BYTES_MAX:
        raise Failure(f"standard input is larger than {INPUT_BYTES_MAX} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Failure(f"standard input is not UTF-8 (byte {error.start})") from None


def apply(config_file: str, **change: Any) -> None:
    """Make an edit and say what came of it: in the sidecar that runs by this configuration, else in its store."""
    from sidecar.cli.control import edited
    from sidecar.config_file import load
    from sidecar.policy.publish import Change

    config = load(config_file)
    asked = Change(**change)
    answer = edited(config.control.socket, asked)
    if answer is None:
        _edit_store(config.policy, asked)
        return
    _say_edits(answer.edits, answer.compiled)
    say_unneeded(answer.unneeded)
    say_generation(answer.generation, answer.generation_digest, answer.standing)


def _edit_store(section: Any, asked: Any) -> None:
    from sidecar.policy.publish import GenerationStore, PolicySource

    with GenerationStore(section.store) as store, compiling(section) as work:
        done = store.edit(asked, PolicySource(section), work)
    _say_edits(done.edits, done.compiled)
    in_force(done)
    click.echo("no sidecar runs here; one that starts decides by it")


def _say_edits(edits: Iterable[Any], compiled: str) -> None:
    for edit in edits:
        click.echo(f"{'removed' if edit.removed else 'put'} {edit.title}")
    if compiled:
        click.echo(f"files and edits were compiled together: {compiled}")


def file_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("files", nargs=-1, required=True, type=click.Path(allow_dash=True))(function)


@policy.command()
@file_argument
@config_option
def put(files: tuple[str, ...], config_file: str) -> None:
    """Add policies or templates to the set in force, or replace those with the same @id.

    FILES are Cedar text; `-` reads standard input. The edit is checked as a publish is, costs the change and not the
    set, and stands over the files of the configuration until `remit policy edits --drop`: every publish keeps it. A
    template with links is replaced together with them, which compiles files and edits anew. A sidecar that runs by the
    configuration makes the edit itself and decides by it when this command ends.

    \b
    Example:
      remit policy put urgent.cedar --config remit.yaml
      echo '@id("freeze") forbid (principal, action, resource);' | remit policy put -
    """
    apply(config_file, policies=texts_of(files))


@policy.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID..")
@config_option
def remove(ids: tuple[str, ...], config_file: str) -> None:
    """Take policies, templates or links out of the set in force, also those that the files hold.

    A template that has links is refused, naming them. What the files hold stays hidden until
    `remit policy edits --drop`, or until it is put again.

    \b
    Example:
      remit policy remove freeze --config remit.yaml
    """
    apply(config_file, removed=list(ids))


@policy.command()
@click.option("--template", required=True, metavar="ID", help="@id of the template.")
@click.option("--id", "id_", required=True, metavar="ID", help="Id of the policy that the link makes.")
@click.option("--principal", metavar="UID", help='Fills ?principal, as in Agent::"spiffe://corp.example/agents/a".')
@click.option("--resource", metavar="UID", help='Fills ?resource, as in Tool::"docs/search".')
@config_option
def link(template: str, id_: str, principal: str | None, resource: str | None, config_file: str) -> None:
    """Make a policy from a template by filling its slots; a link or policy with the same id is replaced.

    \b
    Example:
      remit policy link --template share --id s-17 --principal 'Agent::"spiffe://corp.example/agents/a"' \\
        --resource 'Tool::"docs/search"'
    """
    from sidecar.policy.edits import slots
    from sidecar.policy.links import Link
    from sidecar.policy.question import parse_uid

    filled = slots(
        principal=parse_uid(principal, "--principal") if principal else None,
        resource=parse_uid(resource, "--resource") if resource else None,
    )
    apply(config_file, links=[Link(id_, template, filled)])


@policy.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID..")
@config_option
def unlink(ids: tuple[str, ...], config_file: str) -> None:
    """Remove links by their ids.

    \b
    Example:
      remit policy unlink s-17 --config remit.yaml
    """
    apply(config_file, unlinked=list(ids))


@policy.command()
@click.option("--drop", is_flag=True, help="Forget all edits and publish the files alone.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines instead of a table.")
@config_option
def edits(drop: bool, as_json: bool, config_file: str) -> None:
    """List the edits that stand over the files: who made them, when, and what they did.

    \b
    Example:
      remit policy edits --config remit.yaml
      remit policy edits --drop --config remit.yaml
    """
    from sidecar.policy.publish import GenerationStore, PolicySource

    section = section_of(config_file)
    with GenerationStore(section.store) as store:
        if drop:
            with compiling(section) as work:
                in_force(store.publish_files(PolicySource(section), work, drop_edits=True))
            return
        found = store.edits()
    if as_json:
        for edit in found:
            shown = {"of": edit.of, "type": edit.type, "id": edit.id, "text": edit.text}
            click.echo(json.dumps(shown | {"by": edit.by, "at_unix_s": edit.at_unix_s}))
        return
    rows = [
        (edit.title, "removed" if edit.removed else "put", edit.by, _time(edit.at_unix_s), " ".join(edit.text.split()))
        for edit in found
    ]
    table(standing(len(found)), ("what", "edit", "by", "at", "text"), rows)


def _time(at_unix_s: int) -> str:
    return datetime.fromtimestamp(at_unix_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


@policy.command()
@config_option
def compact(config_file: str) -> None:
    """Compile files and edits together, so that no delta lies over the compiled set any more.

    The edits stay: they stand over the files as before. Others can edit meanwhile; what they edit carries over. Not
    needed for correctness: an edit that a delta cannot hold compiles the whole set by itself.

    \b
    Example:
      remit policy compact --config remit.yaml
    """
    from sidecar.policy.publish import GenerationStore, PolicySource

    section = section_of(config_file)
    with GenerationStore(section.store) as store, compiling(section) as work:
        in_force(store.compact(PolicySource(section), work))
