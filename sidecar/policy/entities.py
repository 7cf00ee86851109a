"""Cedar JSON entities, chunk by chunk. cedarpy reads them; what it refuses is read again to say what and where."""

import json
import marshal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cedarpy
import msgspec

from fastpath.elements import skip_elements
from sidecar.errors import PolicyError
from sidecar.policy import cells
from sidecar.policy.cells import Uid, Value
from sidecar.policy.cores import in_order
from sidecar.policy.hierarchy import check_parents, title
from sidecar.policy.limits import DEFAULT_LIMITS, PolicyLimits
from sidecar.policy.links import EntityUid
from sidecar.policy.source_rows import EntityRow

# What one process reads at a time.
CHUNK_ENTITIES = 2048
CHUNK_CHARS = 1 << 20

Document = str | Sequence[dict[str, Any]]
Hides = Callable[[Any], bool]


class Chunk(NamedTuple):
    """Some entities, each once, as plain values that pass between processes. Uids are keys (key_of)."""

    uids: list[bytes]
    attrs: list[bytes]
    """Values, by `marshal`."""
    tags: list[bytes]
    counts: list[int]
    """How many of `parents` are whose."""
    parents: list[bytes]
    named: list[bytes]
    """Uids that attributes and tags name."""
    hidden: list[Uid]
    """Entities that were left out."""


class _Frame(msgspec.Struct):
    uid: EntityUid
    attrs: msgspec.Raw
    parents: list[EntityUid]
    tags: msgspec.Raw = msgspec.Raw(b"{}")


_FRAMES = msgspec.json.Decoder(list[_Frame])


def key_of(uid: Uid) -> bytes:
    """One string per uid, in the order of types, then ids: no type's name holds a NUL."""
    return f"{uid[0]}\0{uid[1]}".encode()


def packed(value: Value) -> bytes:
    """A value as one string, equal for equal values; `marshal.loads` reads it."""
    return marshal.dumps(value, 2)  # later versions tell objects that are shared from those that are not


def chunk_of(rows: Iterable[EntityRow]) -> Chunk:
    """Entities that are rows already."""
    chunk = Chunk([], [], [], [], [], [], [])
    for row in rows:
        chunk.uids.append(key_of(row.uid))
        chunk.attrs.append(packed(row.attrs))
        chunk.tags.append(packed(row.tags))
        chunk.counts.append(len(row.parents))
        chunk.parents.extend(sorted(map(key_of, row.parents)))
        chunk.named.extend(key_of(uid) for value in (row.attrs, row.tags) for uid in cells.uids_in(value))
    return chunk


def uid_of_key(key: bytes) -> Uid:
    type_, _, id_ = key.decode().partition("\0")
    return type_, id_


@dataclass(frozen=True, slots=True)
class Reading:
    """How a document is read."""

    schema: cedarpy.Schema | None = None
    """Directs the short forms and validates; its action entities come with the first chunk."""
    parents_max: int = DEFAULT_LIMITS.parents_max
    hides: Hides | None = None
    """Whether an entity, given as Cedar JSON, is to be left out."""


def read_chunks(
    document: Document, reading: Reading, name: str = "entities", processes: int = 1
) -> Iterator[tuple[Chunk, int]]:
    """The entities of a Cedar JSON document, and how many were read so far.

    Raises PolicyError that names the entity for what is malformed, against the schema, or twice in a chunk with
    different content. What holds between chunks, and all that is said of parents, is for the caller to check.
    """

    def work(part: tuple[int, int, int]) -> bytes:
        try:
            return marshal.dumps(tuple(_read(document, part, reading)))
        except PolicyError as error:
            return marshal.dumps(str(error))

    done = 0
    for raw in in_order(work, _parts(document, name), processes):
        found = marshal.loads(raw)
        if isinstance(found, str):
            raise PolicyError(f"{name}: {found}")
        chunk = Chunk(*found)
        done += len(chunk.uids)
        yield chunk, done


def load_entities(
    document: Document,
    schema: cedarpy.Schema | None = None,
    name: str = "entities",
    limits: PolicyLimits = DEFAULT_LIMITS,
) -> list[EntityRow]:
    """The entities of a Cedar JSON document with their own parents, as rows; for sets that fit into memory well.

    With `schema` the schema-directed short forms are understood and the schema's action entities are added. Raises
    PolicyError that names the entity for what is malformed, against the schema, cyclic, or there twice with different
    content.
    """
    if not document and schema is None and not isinstance(document, str):
        return []
    rows: dict[Uid, EntityRow] = {}
    for chunk, _ in read_chunks(document, Reading(schema, limits.parents_max), name):
        at = 0
        for key, attrs, tags, count in zip(chunk.uids, chunk.attrs, chunk.tags, chunk.counts, strict=True):
            parents = frozenset(map(uid_of_key, chunk.parents[at : at + count]))
            at += count
            row = EntityRow(uid_of_key(key), marshal.loads(attrs), marshal.loads(tags), parents)
            if rows.setdefault(row.uid, row) != row:
                raise PolicyError(f"{name}: duplicate entity entry `{title(row.uid)}`")
    try:
        check_parents({row.uid: sorted(row.parents) for row in rows.values()}, limits.parents_max, title)
    except PolicyError as error:
        raise PolicyError(f"{name}: {error}") from None
    return list(rows.values())


# ---------------------------------------------------------------- a document in chunks


def _parts(document: Document, name: str) -> Iterator[tuple[int, int, int]]:
    """(number of its first entity, where it begins, where it ends) of each chunk; at least one."""
    if not isinstance(document, str):
        if not isinstance(document, list | tuple):
            raise PolicyError(f"{name}: is not a list of entities")
        for start in range(0, len(document) or 1, CHUNK_ENTITIES):
            yield start + 1, start, min(len(document), start + CHUNK_ENTITIES)
        return
    at = _first(document, name)
    number = 1
    after = False
    while True:
        end, count, following = skip_elements(document, at, CHUNK_ENTITIES, CHUNK_CHARS)
        if (after or following == -2) and not document[at:end].strip():
            raise _no_json(name, json.JSONDecodeError("Expecting value", document, end))
        if following == -2:
            raise _no_json(name, json.JSONDecodeError("Expecting ',' delimiter", document, end))
        yield number, at, end
        if following == -1:
            break
        number, at, after = number + count, following, True
    if rest := document[end + 1 :].lstrip():
        raise _no_json(name, json.JSONDecodeError("Extra data", document, len(document) - len(rest)))


def _first(document: str, name: str) -> int:
    """Where the first entity begins."""
    at = len(document) - len(document.lstrip(" \t\n\r"))
    if document[at : at + 1] == "[":
        return at + 1
    try:
        json.loads(document)
    except json.JSONDecodeError as error:
        raise _no_json(name, error) from None
    except RecursionError:
        raise PolicyError(f"{name}: is nested too deeply") from None
    raise PolicyError(f"{name}: is not a list of entities")


def _no_json(name: str, error: json.JSONDecodeError) -> PolicyError:
    return PolicyError(f"{name}: {_json_cause(error)}")


def _json_cause(error: json.JSONDecodeError) -> str:
    return f"is not JSON: {error.msg.lower()} (line {error.lineno}, column {error.colno})"


# ---------------------------------------------------------------- one chunk


def _read(document: Document, part: tuple[int, int, int], reading: Reading) -> Chunk:
    number, start, end = part
    text = f"[{document[start:end]}]" if isinstance(document, str) else json.dumps(document[start:end])
    hidden: list[Uid] = []
    try:
        if reading.hides is not None:
            text, hidden = _without_hidden(text, reading.hides)
        frames = _frames(text, number)
        if _refused_parents(frames, reading.parents_max):
            return _unread(frames, hidden)
        try:
            closed = str(cedarpy.Entities.from_json_str(text, reading.schema))
        except ValueError as error:
            raise PolicyError(_diagnose(text, number, reading.schema, str(error))) from None
    except json.JSONDecodeError as error:
        if isinstance(document, str):
            error = json.JSONDecodeError(error.msg, document, start + error.pos - 1)
        raise PolicyError(_json_cause(error)) from None
    except RecursionError:
        # Readers of JSON notice at a depth that differs from version to version, or leave it to us.
        raise PolicyError("is nested too deeply") from None
    return _chunk(frames, _FRAMES.decode(closed), hidden, with_added=number == 1)


def _frames(text: str, number: int) -> dict[Uid, list[Uid]]:
    """The direct parents of each entity; PolicyError for an entity that has not the frame of one."""
    try:
        frames = _FRAMES.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        # Another form of uids, or an error that is to be named.
        return _parents(json.loads(text), number)
    return {(one.uid.type, one.uid.id): [(uid.type, uid.id) for uid in one.parents] for one in frames}


def _refused_parents(frames: Mapping[Uid, Sequence[Uid]], parents_max: int) -> bool:
    """Whether the parents within a chunk are refused already: closing them would take cedarpy quadratic time."""
    if not any(parent in frames for parents in frames.values() for parent in parents):
        return False
    try:
        check_parents(frames, parents_max, title)
    except PolicyError:
        return True
    return False


def _unread(frames: Mapping[Uid, list[Uid]], hidden: list[Uid]) -> Chunk:
    """The parents alone: whoever sees those of all chunks says what is wrong with them."""
    empty = [packed(cells.EMPTY_RECORD)] * len(frames)
    parents = [key_of(parent) for parents in frames.values() for parent in parents]
    return Chunk(list(map(key_of, frames)), empty, empty, list(map(len, frames.values())), parents, [], hidden)


def _without_hidden(text: str, hides: Hides) -> tuple[str, list[Uid]]:
    entities = json.loads(text)
    hidden = [entity for entity in entities if hides(entity)]
    if not hidden:
        return text, []
    kept = [entity for entity in entities if not hides(entity)]
    return json.dumps(kept), [uid_of(entity.get("uid"), "uid") for entity in hidden]


def _chunk(frames: Mapping[Uid, list[Uid]], closed: list[_Frame], hidden: list[Uid], *, with_added: bool) -> Chunk:
    """The entities as cedarpy read them, in the order of the document, then those that the schema adds."""
    read = {(one.uid.type, one.uid.id): one for one in closed}
    rows = [(uid, read.pop(uid), parents) for uid, parents in frames.items()]
    if with_added:
        # Their parents come closed, which means the same.
        rows += [(uid, read[uid], [(up.type, up.id) for up in read[uid].parents]) for uid in sorted(read)]
    values: dict[bytes, bytes] = {}
    named: set[Uid] = set()
    chunk = Chunk([], [], [], [], [], [], hidden)
    for uid, one, parents in rows:
        chunk.uids.append(key_of(uid))
        chunk.attrs.append(_value(uid, "attrs", one.attrs, values, named))
        chunk.tags.append(_value(uid, "tags", one.tags, values, named))
        chunk.counts.append(len(parents))
        chunk.parents.extend(map(key_of, parents))
    chunk.named.extend(sorted(map(key_of, named)))
    return chunk


def _value(uid: Uid, part: str, raw: msgspec.Raw, values: dict[bytes, bytes], named: set[Uid]) -> bytes:
    """The value of a record as cedarpy wrote it. Equal ones are made once."""
    text = bytes(raw)
    found = values.get(text)
    if found is None:
        value: Value = cells.of_json(msgspec.json.decode(text), f"entity `{title(uid)}` {part}")
        named.update(cells.uids_in(value))
        found = values[text] = packed(value)
    return found


# ---------------------------------------------------------------- the frame of a document


def _parents(entities: Any, first: int = 1) -> dict[Uid, list[Uid]]:
    """The direct parents of each entity; PolicyError for an entity that has not the frame of one."""
    parents: dict[Uid, list[Uid]] = {}
    for number, entity in enumerate(entities, first):
        where = f"entity {number}"
        if not isinstance(entity, dict):
            raise PolicyError(f"{where} is not an object")
        uid = uid_of(entity.get("uid"), f"{where} uid")
        where = f"entity {number} (`{title(uid)}`)"
        if not isinstance(entity.get("parents"), list):
            raise PolicyError(f"{where} has no list `parents`")
        if not isinstance(entity.get("attrs"), dict):
            raise PolicyError(f"{where} has no object `attrs`")
        if not isinstance(entity.get("tags", {}), dict):
            raise PolicyError(f"{where} has `tags` that are no object")
        parents[uid] = [uid_of(parent, f"{where} parent") for parent in entity["parents"]]
    return parents


def uid_of(value: Any, where: str) -> Uid:
    """The uid that Cedar JSON gives, with or without `__entity`; PolicyError, which begins with `where`, for none."""
    if isinstance(value, dict) and value.keys() == {"__entity"}:
        value = value["__entity"]
    return cells.uid_of_json(value, where)


# ---------------------------------------------------------------- why cedarpy refused a document


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; PolicyError when a key stands twice in it."""
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise PolicyError(f"the key `{key}` stands twice in one object")
    return dict(pairs)


def _diagnose(text: str, number: int, schema: cedarpy.Schema | None, message: str) -> str:
    """What is wrong with a chunk that cedarpy refused with `message`."""
    try:
        entities = json.loads(text, object_pairs_hook=unique_keys)
        _parents(entities, number)
    except PolicyError as error:
        return str(error)
    return _offender(entities, number, schema) or message


def _refuses(entities: list[dict[str, Any]], schema: cedarpy.Schema | None) -> str | None:
    try:
        cedarpy.Entities.from_json_str(json.dumps(entities), schema)
    except ValueError as error:
        return str(error)
    return None


def _offender(entities: list[dict[str, Any]], number: int, schema: cedarpy.Schema | None) -> str | None:
    """The first entity that cedarpy refuses by itself, with the attribute when one is at fault."""
    low, high = 0, len(entities)
    while high - low > 1:
        middle = (low + high) // 2
        if _refuses(entities[low:middle], schema) is not None:
            high = middle
        else:
            low = middle
    entity = entities[low]
    message = _refuses([entity], schema)
    if message is None:
        return None  # they clash with each other, which cedarpy's own message names
    where = f"entity {low + number} (`{title(uid_of(entity['uid'], ''))}`)"
    for part in ("attrs", "tags"):
        try:
            cells.of_json(entity.get(part, {}), f"{where} {part}")
        except PolicyError as error:
            return str(error)
    for part in ("attrs", "tags"):
        for key in entity.get(part, {}):
            rest = {name: value for name, value in entity[part].items() if name != key}
            if _refuses([{**entity, part: rest}], schema) is None:
                return f"{where} {part}.{key}: {message}"
    return f"{where}: {message}"
