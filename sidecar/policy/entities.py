"""Cedar JSON entities to entity rows. cedarpy reads them; what it refuses is looked for again to say what and where."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import cedarpy

from sidecar.errors import PolicyError
from sidecar.policy import cells
from sidecar.policy.cells import Uid
from sidecar.policy.image import EntityRow


def load_entities(
    document: str | Sequence[dict[str, Any]], schema: cedarpy.Schema | None = None, name: str = "entities"
) -> list[EntityRow]:
    """The entities of a Cedar JSON document, ancestors transitively closed.

    With `schema` the schema-directed short forms are understood and the schema's action entities are added. Raises
    PolicyError that names the entity for what is malformed, against the schema, cyclic, or there twice with different
    content.
    """
    if not isinstance(document, str):
        if not document and schema is None:
            return []
        document = json.dumps(document)
    try:
        text = str(cedarpy.Entities.from_json_str(document, schema))
    except ValueError as error:
        raise PolicyError(f"{name}: {_diagnose(document, schema, str(error))}") from None
    if not text.startswith("["):
        # cedarpy reads a malformed escape (`{"__entity": ..}` that is no uid) as a record, which it then cannot print.
        raise PolicyError(f"{name}: {text.strip('<>')}")
    return [_row(entity, name) for entity in json.loads(text)]


def _row(entity: dict[str, Any], name: str) -> EntityRow:
    uid = cells.uid_of_json(entity["uid"], f"{name}: uid")
    where = f"{name}: entity `{title(uid)}`"
    attrs = cells.of_json(entity["attrs"], f"{where} attrs")
    tags = cells.of_json(entity.get("tags", {}), f"{where} tags")
    ancestors = frozenset((parent["type"], parent["id"]) for parent in entity["parents"])
    return EntityRow(uid, attrs, tags, ancestors)


def title(uid: Uid) -> str:
    """An entity uid as Cedar text."""
    return f"{uid[0]}::{json.dumps(uid[1], ensure_ascii=False)}"


# ---------------------------------------------------------------- why cedarpy refused a document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise PolicyError(f"the key `{key}` stands twice in one object")
    return dict(pairs)


def _diagnose(document: str, schema: cedarpy.Schema | None, message: str) -> str:
    """What is wrong with a document that cedarpy refused with `message`."""
    try:
        entities = json.loads(document, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        return f"is not JSON: {error.msg.lower()} (line {error.lineno}, column {error.colno})"
    except RecursionError:
        return "is nested too deeply"
    except PolicyError as error:
        return str(error)
    if not isinstance(entities, list):
        return "is not a list of entities"
    return _malformed(entities) or _cycle(entities) or _offender(entities, schema) or message


def _malformed(entities: list[Any]) -> str | None:
    """The first entity whose frame is not that of an entity."""
    for number, entity in enumerate(entities, 1):
        where = f"entity {number}"
        if not isinstance(entity, dict):
            return f"{where} is not an object"
        try:
            where = f"entity {number} (`{title(_uid(entity.get('uid'), f'{where} uid'))}`)"
            if not isinstance(entity.get("parents"), list):
                return f"{where} has no list `parents`"
            for parent in entity["parents"]:
                _uid(parent, f"{where} parent")
        except PolicyError as error:
            return str(error)
        if not isinstance(entity.get("attrs"), dict):
            return f"{where} has no object `attrs`"
        if not isinstance(entity.get("tags", {}), dict):
            return f"{where} has `tags` that are no object"
    return None


def _uid(value: Any, where: str) -> Uid:
    if isinstance(value, dict) and value.keys() == {"__entity"}:
        value = value["__entity"]
    return cells.uid_of_json(value, where)


def _cycle(entities: list[dict[str, Any]]) -> str | None:
    """A cycle among the parents, walked without recursion."""
    parents = {_uid(e["uid"], ""): [_uid(p, "") for p in e["parents"]] for e in entities}
    state: dict[Uid, bool] = {}  # False: on the way, True: done
    for start in parents:
        path = [start]
        while path:
            at = path[-1]
            if at not in state:
                state[at] = False
            for parent in parents[at]:
                if parent not in parents or state.get(parent):
                    continue
                if parent in state:
                    ring = [*path[path.index(parent) :], parent]
                    return "parents form a cycle: " + " in ".join(f"`{title(uid)}`" for uid in ring)
                path.append(parent)
                break
            else:
                state[at] = True
                path.pop()
    return None


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
