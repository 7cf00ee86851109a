"""Cedar JSON entities to entity rows. cedarpy reads them; what it refuses is looked for again to say what and where."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import cedarpy
import msgspec

from sidecar.errors import PolicyError
from sidecar.policy import cells
from sidecar.policy.cells import Uid
from sidecar.policy.hierarchy import check_parents, title
from sidecar.policy.image import EntityRow
from sidecar.policy.limits import DEFAULT_LIMITS, PolicyLimits


def load_entities(
    document: str | Sequence[dict[str, Any]],
    schema: cedarpy.Schema | None = None,
    name: str = "entities",
    limits: PolicyLimits = DEFAULT_LIMITS,
) -> list[EntityRow]:
    """The entities of a Cedar JSON document, ancestors transitively closed.

    With `schema` the schema-directed short forms are understood and the schema's action entities are added. Raises
    PolicyError that names the entity for what is malformed, against the schema, cyclic, or there twice with different
    content.
    """
    if not document and schema is None and not isinstance(document, str):
        return []
    try:
        check_parents(_parents(json.loads(document) if isinstance(document, str) else document), limits.parents_max)
        text = document if isinstance(document, str) else json.dumps(document)
        try:
            closed = str(cedarpy.Entities.from_json_str(text, schema))
        except ValueError as error:
            raise PolicyError(_diagnose(text, schema, str(error))) from None
    except PolicyError as error:
        raise PolicyError(f"{name}: {error}") from None
    except json.JSONDecodeError as error:
        cause = f"{error.msg.lower()} (line {error.lineno}, column {error.colno})"
        raise PolicyError(f"{name}: is not JSON: {cause}") from None
    except RecursionError:
        # Python's reader of JSON notices at a depth that differs from version to version, or leaves it to us.
        raise PolicyError(f"{name}: is nested too deeply") from None
    found = msgspec.json.decode(closed)
    found.reverse()
    # Each is let go of when its row is made: the JSON form of a large store takes several times the rows' memory.
    return [_row(found.pop(), name) for _ in range(len(found))]


def _row(entity: dict[str, Any], name: str) -> EntityRow:
    uid = cells.uid_of_json(entity["uid"], f"{name}: uid")
    where = f"{name}: entity `{title(uid)}`"
    attrs = cells.of_json(entity["attrs"], f"{where} attrs")
    tags = cells.of_json(entity.get("tags", {}), f"{where} tags")
    ancestors = frozenset((parent["type"], parent["id"]) for parent in entity["parents"])
    return EntityRow(uid, attrs, tags, ancestors)


# ---------------------------------------------------------------- the frame of a document


def _parents(entities: Any) -> dict[Uid, list[Uid]]:
    """The direct parents of each entity; PolicyError for an entity that has not the frame of one."""
    if not isinstance(entities, list | tuple):
        raise PolicyError("is not a list of entities")
    parents: dict[Uid, list[Uid]] = {}
    for number, entity in enumerate(entities, 1):
        where = f"entity {number}"
        if not isinstance(entity, dict):
            raise PolicyError(f"{where} is not an object")
        uid = _uid(entity.get("uid"), f"{where} uid")
        where = f"entity {number} (`{title(uid)}`)"
        if not isinstance(entity.get("parents"), list):
            raise PolicyError(f"{where} has no list `parents`")
        if not isinstance(entity.get("attrs"), dict):
            raise PolicyError(f"{where} has no object `attrs`")
        if not isinstance(entity.get("tags", {}), dict):
            raise PolicyError(f"{where} has `tags` that are no object")
        parents[uid] = [_uid(parent, f"{where} parent") for parent in entity["parents"]]
    return parents


def _uid(value: Any, where: str) -> Uid:
    if isinstance(value, dict) and value.keys() == {"__entity"}:
        value = value["__entity"]
    return cells.uid_of_json(value, where)


# ---------------------------------------------------------------- why cedarpy refused a document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise PolicyError(f"the key `{key}` stands twice in one object")
    return dict(pairs)


def _diagnose(document: str, schema: cedarpy.Schema | None, message: str) -> str:
    """What is wrong with a document, well framed, that cedarpy refused with `message`."""
    try:
        entities = json.loads(document, object_pairs_hook=_unique)
    except PolicyError as error:
        return str(error)
    return _offender(entities, schema) or message


def _refuses(entities: list[dict[str, Any]], schema: cedarpy.Schema | None) -> str | None:
    try:
        cedarpy.Entities.from_json_str(json.dumps(entities), schema)
    except ValueError as error:
        return str(error)
    return None


def _offender(entities: list[dict[str, Any]], schema: cedarpy.Schema | None) -> str | None:
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
    where = f"entity {low + 1} (`{title(_uid(entity['uid'], ''))}`)"
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
