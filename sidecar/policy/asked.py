"""A change that is asked for, as edits: read, capped, parsed and judged against the set that is in force."""

import json
from collections.abc import Iterable

from sidecar.errors import PolicyError
from sidecar.policy.cells import Uid
from sidecar.policy.edits import Edit, Key, entity_uid, link_edit
from sidecar.policy.entities import unique_keys
from sidecar.policy.hierarchy import title
from sidecar.policy.inforce import InForce
from sidecar.policy.jobs import Change
from sidecar.policy.lexer import PolicyText

LISTED = 5
"""Links that an error names."""


def edits_of(change: Change, now: InForce) -> list[Edit]:
    """What `change` comes to, one edit per thing. PolicyError names what is refused, the cause and what to do."""
    made = [
        *(Edit("policy", id_, text=one.piece.text) for id_, one in now.read(change.policies).items()),
        *map(link_edit, change.links),
        *(one for document in change.entities for one in _entities(document)),
        *(_removal(id_, now) for id_ in change.removed),
        *(_unlinking(id_, now) for id_ in change.unlinked),
        *(_entity_removal((uid.type, uid.id), now) for uid in change.entities_removed),
    ]
    seen: set[Key] = set()
    for edit in made:
        if edit.key in seen:
            raise PolicyError(f"{edit.title} stands twice in one change; say it once")
        seen.add(edit.key)
    return made


def _entities(document: PolicyText) -> Iterable[Edit]:
    try:
        found = json.loads(document.text, object_pairs_hook=unique_keys)
    except PolicyError as error:
        raise PolicyError(f"{document.name}: {error}") from None
    except json.JSONDecodeError as error:
        cause = f"{error.msg.lower()} (line {error.lineno}, column {error.colno})"
        raise PolicyError(f"{document.name}: is not JSON: {cause}") from None
    except RecursionError:
        raise PolicyError(f"{document.name}: is nested too deeply") from None
    for number, one in enumerate(found if isinstance(found, list) else [found], 1):
        where = f"{document.name}: entity {number}"
        if not isinstance(one, dict):
            raise PolicyError(f"{where} is not an object")
        type_, id_ = entity_uid(one, where)
        yield Edit("entity", id_, type_, json.dumps(one, ensure_ascii=False, separators=(",", ":")))


def _removal(id_: str, now: InForce) -> Edit:
    kind = now.kind(id_)
    if kind is None:
        raise PolicyError(f"there is no policy, template or link `{id_}` to remove; remit policy edits lists edits")
    if kind == "template":
        refuse_with_links(id_, now)
    return Edit("link" if kind == "link" else "policy", id_)


def _unlinking(id_: str, now: InForce) -> Edit:
    kind = now.kind(id_)
    if kind is None:
        raise PolicyError(f"there is no link `{id_}` to remove")
    if kind != "link":
        raise PolicyError(f"`{id_}` is a {kind}, not a link; remove it with remit policy remove")
    return Edit("link", id_)


def _entity_removal(uid: Uid, now: InForce) -> Edit:
    if uid in now.actions:
        raise PolicyError(f"entity `{title(uid)}` comes from the schema; take it out there")
    if not now.has_entity(uid):
        raise PolicyError(f"there is no entity `{title(uid)}` to remove")
    return Edit("entity", uid[1], uid[0])


def refuse_with_links(template: str, now: InForce) -> None:
    """PolicyError when a template that is to go has links."""
    count = now.links_of(template)
    if count:
        names = now.names_of_links(template, LISTED)
        listed = ", ".join(f"`{name}`" for name in names) + (", .." if count > len(names) else "")
        many = "a link" if count == 1 else f"{count} links"
        raise PolicyError(f"template `{template}` has {many} ({listed}); remove with remit policy unlink first")
