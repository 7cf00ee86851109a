"""`remit entity ...`: change one entity without publishing the whole set again."""

import click

from sidecar.cli.edits import apply, file_argument, texts_of
from sidecar.cli.output import Commands, config_option


@click.group(cls=Commands)
def entity() -> None:
    """Put and remove single entities of the set in force."""


@entity.command()
@file_argument
@config_option
def put(files: tuple[str, ...], config_file: str) -> None:
    """Add entities to the set in force, or replace those with the same uid.

    FILES are Cedar JSON, one entity or a list; `-` reads standard input. An entity is replaced whole: attributes, tags
    and parents. Entities are validated against the schema in force. The edit stands over the files of the configuration
    until `remit policy edits --drop`. A sidecar that runs by the configuration decides by it when this command ends.

    \b
    Example:
      remit entity put clerk.json --config remit.yaml
      echo '{"uid": {"type": "Agent", "id": "a"}, "attrs": {}, "parents": []}' | remit entity put -
    """
    apply(config_file, entities=texts_of(files))


@entity.command()
@click.argument("uids", nargs=-1, required=True, metavar="UID..")
@config_option
def remove(uids: tuple[str, ...], config_file: str) -> None:
    """Take entities out of the set in force, also those that the files hold.

    The entity is gone as if no file held it: it has no attributes, tags and parents any more. Entities that name it as
    a parent still do, as in Cedar's own store: `child in removed` stays true, and what it was itself in is not reached
    through it any more. To cut that as well, put the children without that parent.

    \b
    Example:
      remit entity remove 'Agent::"spiffe://corp.example/agents/a"' --config remit.yaml
    """
    from sidecar.policy.links import EntityUid
    from sidecar.policy.question import parse_uid

    apply(config_file, entities_removed=[EntityUid(*parse_uid(uid)) for uid in uids])
