"""Entities: read as Cedar reads them, closed transitively, and refused with the entity and the cause (PO-06)."""

import pytest

from fastpath.names import Names, inverse
from sidecar.errors import PolicyError
from sidecar.policy import cells
from sidecar.policy.entities import chunk_of, load_entities, uid_of_key
from sidecar.policy.entity_table import NONE32, EntityTable
from sidecar.policy.schema import load_schema
from tests.fix_policy import ANYTHING, evaluate, refusal

SCHEMA = """
entity G in [G];
entity P in [G] { ip?: ipaddr, d: decimal, friend?: P, s?: Set<P>, r?: { t: datetime } } tags String;
action top; action a in [top] appliesTo { principal: P, resource: P, context: {} };
"""

DEEP = '[{"uid": {"type": "G", "id": "a"}, "parents": [], "attrs": {"x": ' + "[" * 5000 + "]" * 5000 + "}}]"


def uid(type_, id_):
    return {"type": type_, "id": id_}


def entity(id_, *parents, type_="G", **attrs):
    return {"uid": uid(type_, id_), "attrs": attrs, "parents": [uid("G", parent) for parent in parents]}


def by_uid(rows):
    return {row.uid: row for row in rows}


def closures(rows):
    """All ancestors of every uid that is a parent, as the image has them."""
    table = EntityTable(Names())
    table.add(chunk_of(rows.values()))
    table.check(1000)
    order = table.uids.order()
    closure_rows, starts, members = table.closures(inverse(order))
    return {
        uid_of_key(table.uids[number]): {
            uid_of_key(table.uids[order[rank]]) for rank in members[starts[at] : starts[at + 1]]
        }
        for number, at in enumerate(closure_rows)
        if at != NONE32
    }


def test_ancestors_are_closed_and_may_dangle():
    """PO-06: parents need not be entities; the closure is bounded by what is named."""
    rows = by_uid(load_entities([entity("a", "b"), entity("b", "c", "d")]))
    assert rows["G", "a"].parents == {("G", "b")}
    assert closures(rows)["G", "b"] == {("G", "c"), ("G", "d")}
    assert ("G", "c") not in rows


def test_a_chain_of_400_and_a_wide_parent_compile():
    """PO-06: depth 400 and 20,000 parents."""
    chain = [entity(str(i), str(i + 1)) for i in range(400)]
    assert (
        evaluate(f'{ANYTHING} when {{ principal in G::"400" }};', principal=("G", "0"), entities=chain).outcome
        == "ALLOW"
    )
    wide = [entity("w", *(f"p{i}" for i in range(20_000)))]
    assert (
        evaluate(f'{ANYTHING} when {{ principal in G::"p19999" }};', principal=("G", "w"), entities=wide).outcome
        == "ALLOW"
    )


def test_a_schema_directs_how_values_are_read():
    """Plain text for extension types, plain uids for entities; the schema's actions join the store."""
    handle = load_schema(SCHEMA).handle
    document = [
        entity(
            "x", "g", type_="P", ip="1.2.3.4", d="1.0", friend=uid("P", "y"), s=[uid("P", "y")], r={"t": "2024-01-01"}
        )
        | {"tags": {"k": "v"}}
    ]
    rows = by_uid(load_entities(document, handle))
    attrs = dict(rows["P", "x"].attrs[2])
    assert attrs[b"ip"] == cells.of_extension("ip", "1.2.3.4")
    assert attrs[b"d"] == cells.of_extension("decimal", "1.0")
    assert attrs[b"friend"] == cells.of_entity("P", "y")
    assert attrs[b"s"] == cells.of_set([cells.of_entity("P", "y")])
    assert attrs[b"r"] == cells.of_record({"t": cells.of_extension("datetime", "2024-01-01")})
    assert rows["P", "x"].tags == cells.of_record({"k": cells.of_string("v")})
    assert rows["Action", "a"].parents == {("Action", "top")}


def test_identical_entities_are_one():
    """Cedar folds an entity that stands twice with the same content."""
    assert len(load_entities([entity("a", "b"), entity("a", "b")])) == 1


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("[", "entities: is not JSON: expecting value (line 1, column 2)"),
        ("{}", "entities: is not a list of entities"),
        ('[{"uid": {"type": "A", "id": "b"}, "attrs": {"x": 1, "x": 2}, "parents": []}]', "the key `x` stands twice"),
        (DEEP, " is nested "),
        ([1], "entity 1 is not an object"),
        ([{"attrs": {}, "parents": []}], "entity 1 uid is not an entity uid"),
        ([entity("a"), {**entity("b"), "parents": ["G::a"]}], 'entity 2 (`G::"b"`) parent is not an entity uid'),
        ([{**entity("a"), "parents": None}], 'entity 1 (`G::"a"`) has no list `parents`'),
        ([{"uid": uid("G", "a"), "parents": []}], 'entity 1 (`G::"a"`) has no object `attrs`'),
        ([{**entity("a"), "tags": []}], 'entity 1 (`G::"a"`) has `tags` that are no object'),
        ([entity("a"), entity("b", x=1.5)], 'entity 2 (`G::"b"`) attrs.x is float, which is no Cedar value'),
        ([entity("a", x={"y": [None]})], 'entity 1 (`G::"a"`) attrs.x.y[0] is null'),
        ([entity("a", x=1 << 63)], "attrs.x is `9223372036854775808`, which does not fit into 64 bits"),
        ([entity("a", x={"__extn": {"fn": "ip", "arg": "300.1.1.1"}})], "attrs.x is `300.1.1.1`, which is no ip"),
        ([{**entity("a"), "tags": {"t": None}}], 'entity 1 (`G::"a"`) tags.t is null'),
        ([{**entity("a"), "uid": uid("A b", "x")}], "entity 1 uid names the type `A b`, which is no type name"),
        ([entity("a", "b"), entity("b", "c"), entity("c", "a")], "parents form a cycle"),
        ([entity("a", "a")], 'parents form a cycle: `G::"a"` in `G::"a"`'),
        ([entity("a"), entity("b"), entity("a", x=1)], 'duplicate entity entry `G::"a"`'),
    ],
)
def test_what_is_refused_names_the_entity(document, problem):
    """PO-06: cycles, self-parents, duplicates and bad values refuse the publish."""
    message = refusal(f'@id("a") {ANYTHING};', entities=document)
    assert message.startswith("entities: ")
    assert problem in message


@pytest.mark.parametrize(
    ("attrs", "problem"),
    [
        ({"d": "1.0", "ip": "x"}, 'entity 2 (`P::"x"`) attrs.ip: '),
        ({"d": 1}, 'entity 2 (`P::"x"`): '),
        ({"d": "1.0", "more": 1}, 'entity 2 (`P::"x"`) attrs.more: error during entity deserialization'),
        ({}, 'entity 2 (`P::"x"`): entity does not conform to the schema'),
    ],
)
def test_what_the_schema_refuses_names_the_attribute(attrs, problem):
    """PO-14: entities that the schema does not allow refuse the publish."""
    with pytest.raises(PolicyError) as caught:
        load_entities([entity("g"), entity("x", type_="P", **attrs)], load_schema(SCHEMA).handle, "people.json")
    assert str(caught.value).startswith("people.json: " + problem)


def test_the_offender_is_found_among_many():
    """Entities are read in chunks; the message counts them as the file does."""
    many = [entity(str(i), n=i) for i in range(1000)]
    many[777]["attrs"]["n"] = None
    with pytest.raises(PolicyError, match=r'entity 778 \(`G::"777"`\) attrs\.n is null'):
        load_entities(many)


def test_long_chains_of_parents_are_judged_before_they_are_closed():
    """PO-06: closing a chain takes quadratic time, so a cycle or an endless chain is refused before that."""
    ring = [entity(str(i), str((i + 1) % 50_000)) for i in range(50_000)]
    with pytest.raises(PolicyError, match=r'parents form a cycle: `G::"0"` in `G::"1"` in .* in `G::"0"`'):
        load_entities(ring)
    ring[-1]["parents"] = []
    with pytest.raises(PolicyError, match="has a chain of more than 1000 parents"):
        load_entities(ring)


def test_a_diamond_is_no_cycle():
    """An ancestor that is reached by two parents stands once in a closure."""
    rows = by_uid(load_entities([entity("a", "b", "c"), entity("b", "d"), entity("c", "d"), entity("d")]))
    assert closures(rows) == {
        ("G", "b"): {("G", "d")}, ("G", "c"): {("G", "d")}, ("G", "d"): set()
    }  # fmt: skip
