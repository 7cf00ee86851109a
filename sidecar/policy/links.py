"""Template links: `links.jsonl`, one link per line, and the policies that they make."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from sidecar.errors import PolicyError
from sidecar.policy.cells import is_type_name
from sidecar.policy.limits import DEFAULT_LIMITS, PolicyLimits


class EntityUid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entity uid as Cedar JSON writes it."""

    type: str
    id: str


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One policy made from a template by filling its slots."""

    id: str
    template: str
    """The template's `@id`."""
    slots: dict[str, EntityUid]
    """`?principal` and `?resource`, exactly those that the template has."""


class PlacedLink(msgspec.Struct, frozen=True):
    """A link and where it stands, as `links.jsonl:3`."""

    link: Link
    where: str


def parse_links(text: str, name: str = "links.jsonl", limits: PolicyLimits = DEFAULT_LIMITS) -> list[PlacedLink]:
    """The links of a JSON-lines text; blank lines are skipped. PolicyError names file and line."""
    links = parse_lines(text, name)
    if len(links) > limits.links_max:
        raise PolicyError(f"{links[limits.links_max].where}: more than {limits.links_max} links")
    return links


def parse_lines(text: str, name: str, first: int = 1) -> list[PlacedLink]:
    """The links of lines of which the first has the number `first`."""
    decoder = msgspec.json.Decoder(Link)
    links = []
    for number, line in enumerate(text.split("\n"), first):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            links.append(PlacedLink(decoder.decode(line), where))
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise PolicyError(f"{where}: link cannot be read: {_lower(str(error))}") from None
    return links


def placed(links: Iterable[Link | PlacedLink | Mapping[str, Any]]) -> list[PlacedLink]:
    """Links given by a program, with their number as place."""
    out = []
    for number, link in enumerate(links, 1):
        where = f"link {number}"
        if isinstance(link, PlacedLink):
            out.append(link)
            continue
        try:
            out.append(PlacedLink(link if isinstance(link, Link) else msgspec.convert(link, Link), where))
        except msgspec.ValidationError as error:
            raise PolicyError(f"{where}: cannot be read: {_lower(str(error))}") from None
    return out


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def slots_of(est: Mapping[str, Any]) -> set[str]:
    """The slots that a template's scope has."""
    return {
        scope["slot"]
        for part in ("principal", "resource")
        for scope in (est[part], est[part].get("in", {}))
        if "slot" in scope
    }


def check_slots(placed: PlacedLink, needed: set[str]) -> None:
    """Refuse a link that does not fill exactly the slots of its template."""
    link = placed.link
    for cause, names in (("does not fill", needed - link.slots.keys()), ("fills", link.slots.keys() - needed)):
        if names:
            slot = sorted(names)[0]
            tail = "" if cause == "does not fill" else ", which the template does not have"
            raise PolicyError(f"{placed.where}: link `{link.id}` {cause} the slot `{slot}` of `{link.template}`{tail}")
    for slot, uid in sorted(link.slots.items()):
        if not is_type_name(uid.type):
            raise PolicyError(
                f"{placed.where}: link `{link.id}` has the type `{uid.type}` in `{slot}`, which is no type name"
            )


def check_ids(links: Sequence[PlacedLink], taken: Mapping[str, str]) -> None:
    """Refuse link ids that stand twice or belong to a policy. `taken` gives the place of each policy id."""
    seen = dict(taken)
    for placed in links:
        link = placed.link
        if not link.id:
            raise PolicyError(f"{placed.where}: link has an empty id")
        if link.id in seen:
            raise PolicyError(f"{placed.where}: link id `{link.id}` is taken by {seen[link.id]}")
        seen[link.id] = f"the link at {placed.where}"
