"""All template links of an image, a few numbers each, read chunk by chunk."""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fastpath.names import Names
from sidecar.errors import PolicyError
from sidecar.policy.cores import in_order
from sidecar.policy.entities import key_of
from sidecar.policy.lexer import PolicyText
from sidecar.policy.limits import PolicyLimits
from sidecar.policy.links import EntityUid, PlacedLink, parse_lines

NONE32 = 0xFFFFFFFF
# What one process reads at a time.
CHUNK_LINKS = 4096


class LinkChunk(NamedTuple):
    """Some links as plain values that pass between processes. Uids are keys (entities.key_of), empty for no slot."""

    ids: list[bytes]
    templates: list[str]
    principals: list[bytes]
    resources: list[bytes]
    places: list[str] | list[int]
    """Where each stands; numbers are lines of the file."""
    hidden: list[str]
    """Ids of links that were left out."""


@dataclass(frozen=True, slots=True)
class LinkReading:
    """How links are read."""

    check: Callable[[Sequence[PlacedLink]], list[str]]
    """The ids of the templates of some links; PolicyError for a link that cannot be."""
    hides: Callable[[str], bool]
    """Whether a link of this id is to be left out."""
    limits: PolicyLimits


def read_links(
    links: PolicyText | Sequence[PlacedLink], reading: LinkReading, processes: int = 1
) -> Iterator[LinkChunk]:
    """The links of a JSON-lines text, or those given, in order. PolicyError names the link and its place."""

    def work(part: tuple[int, int, int]) -> bytes:
        line, start, end = part
        try:
            if not isinstance(links, PolicyText):
                return marshal.dumps(tuple(_chunk(links[start:end], reading)))
            chunk = _chunk(parse_lines(links.text[start:end], links.name, line), reading)
            lines = [int(str(where).rpartition(":")[2]) for where in chunk.places]
            return marshal.dumps(tuple(chunk._replace(places=lines)))
        except PolicyError as error:
            return marshal.dumps(str(error))

    done = 0
    for raw in in_order(work, _parts(links), processes):
        found = marshal.loads(raw)
        if isinstance(found, str):
            raise PolicyError(found)
        chunk = LinkChunk(*found)
        done += len(chunk.ids)
        if done > reading.limits.links_max:
            where = _where(links, chunk.places[reading.limits.links_max - done])
            raise PolicyError(f"{where}: more than {reading.limits.links_max} links")
        yield chunk


def _where(links: PolicyText | Sequence[PlacedLink], place: str | int) -> str:
    return f"{links.name}:{place}" if isinstance(links, PolicyText) else str(place)


def _parts(links: PolicyText | Sequence[PlacedLink]) -> Iterator[tuple[int, int, int]]:
    """(number of its first line, where it begins, where it ends) of each chunk."""
    if not isinstance(links, PolicyText):
        for start in range(0, len(links), CHUNK_LINKS):
            yield 1, start, start + CHUNK_LINKS
        return
    line, start = 1, 0
    while start < len(links.text):
        end = start
        for _ in range(CHUNK_LINKS):
            end = links.text.find("\n", end) + 1
            if not end:
                yield line, start, len(links.text)
                return
        yield line, start, end
        line, start = line + CHUNK_LINKS, end


def _chunk(links: Sequence[PlacedLink], reading: LinkReading) -> LinkChunk:
    hidden = [place.link.id for place in links if reading.hides(place.link.id)]
    if hidden:
        links = [place for place in links if not reading.hides(place.link.id)]
    templates = reading.check(links)
    return LinkChunk(
        [place.link.id.encode() for place in links],
        templates,
        [_key(place.link.slots.get("?principal")) for place in links],
        [_key(place.link.slots.get("?resource")) for place in links],
        [place.where for place in links],
        hidden,
    )


def _key(uid: EntityUid | None) -> bytes:
    return b"" if uid is None else key_of((uid.type, uid.id))


@dataclass(slots=True)
class OfTemplate:
    """Ids, and what fills `?principal` and `?resource` or NONE32, of a template's links."""

    ids: array[int]
    principals: array[int]
    resources: array[int]


class LinkTable:
    """Links by their template. Uids and ids are numbers of Names."""

    def __init__(self, uids: Names, ids: Names) -> None:
        """`ids` holds those of policies and templates, and nothing else."""
        self.uids = uids
        self.ids = ids
        self._policies = len(ids)
        self._by_template: dict[str, OfTemplate] = {}
        self._places: list[tuple[str, list[str] | array[int]]] = []
        """By chunk; every link has the next id, so they tell where each id stands."""

    def __len__(self) -> int:
        return sum(len(one.ids) for one in self._by_template.values())

    def templates(self) -> list[str]:
        """Those that have links, sorted."""
        return sorted(self._by_template, key=str.encode)

    def of(self, template: str) -> OfTemplate:
        return self._by_template[template]

    def count(self, template: str) -> int:
        """How many links a template has."""
        return len(self._by_template[template].ids) if template in self._by_template else 0

    def add(self, chunk: LinkChunk, source: str, title_of: Callable[[str], str]) -> None:
        """Add a chunk from the file `source`; PolicyError for an id that is taken, by a link or by what `title_of`
        names.
        """
        before = len(self.ids)
        numbers = self.ids.add_all(chunk.ids)
        if len(self.ids) - before != len(numbers) or b"" in chunk.ids:
            raise self._taken(chunk, numbers, before, source, title_of)
        places = [one for one in chunk.places if isinstance(one, str)]
        self._places.append((source, places or array("I", (one for one in chunk.places if isinstance(one, int)))))
        principals, resources = self._slots(chunk.principals), self._slots(chunk.resources)
        if len(set(chunk.templates)) == 1:
            self._extend(chunk.templates[0], numbers, principals, resources)
            return
        for name, *row in zip(chunk.templates, numbers, principals, resources, strict=True):
            self._extend(name, *(array("I", [one]) for one in row))

    def _slots(self, keys: list[bytes]) -> array[int]:
        if all(keys):
            return self.uids.add_all(keys)
        return array("I", (self.uids.add(key) if key else NONE32 for key in keys))

    def _extend(self, template: str, ids: array[int], principals: array[int], resources: array[int]) -> None:
        found = self._by_template.setdefault(template, OfTemplate(array("I"), array("I"), array("I")))
        found.ids.extend(ids)
        found.principals.extend(principals)
        found.resources.extend(resources)

    def _taken(
        self, chunk: LinkChunk, numbers: array[int], before: int, source: str, title_of: Callable[[str], str]
    ) -> PolicyError:
        """Names the first link of a chunk whose id is empty, or was there already."""
        seen: dict[int, str] = {}
        for raw, number, place in zip(chunk.ids, numbers, chunk.places, strict=True):
            where = place if isinstance(place, str) else f"{source}:{place}"
            id_ = raw.decode()
            if not id_:
                return PolicyError(f"{where}: link has an empty id")
            if number < self._policies:
                return PolicyError(f"{where}: link id `{id_}` is taken by {title_of(id_)}")
            if number < before or number in seen:
                first = seen[number] if number in seen else self._place(number)
                return PolicyError(f"{where}: link id `{id_}` is taken by the link at {first}")
            seen[number] = where
        raise AssertionError("every id was free")

    def _place(self, number: int) -> str:
        at = number - self._policies
        for source, places in self._places:
            if at < len(places):
                return str(places[at]) if isinstance(places, list) else f"{source}:{places[at]}"
            at -= len(places)
        raise IndexError(number)
