"""The schema reader extracts what cedarpy understands: actions with parents, entity types, argument shapes."""

import json

import cedarpy
import pytest

from sidecar.errors import PolicyError
from sidecar.policy import cells
from sidecar.policy.schema import input_shapes, load_schema, undecodable

EVERYTHING = r"""
// a comment with { brackets
@doc("outside") namespace Shop {
  @doc("x") type Money = { amount: Long, currency: String, };
  type Names = Set<String>;
  entity Group, Team in [Group];
  entity Person in [Group, Team] = { name: String, @note("why") "shoe size"?: Long, money?: Money } tags Set<String>;
  entity Color enum ["red", "gr\"een"];
  entity Empty;
  action change, "look at";
  action buy, "sell it" in [change, Action::"look at", Other::Action::"top"] appliesTo {
    principal: [Person, Team],
    resource: Color,
    context: {
      input: { m: Money, n?: Names, p: Person, when: datetime, "a b": Set<Set<Long>>, ip: ipaddr },
      extra?: Long
    },
  };
}
namespace Other { action top; }
type Sum = Long;
entity Visitor;
action "read" appliesTo { principal: Shop::Person, resource: [Visitor], context: Ctx };
type Ctx = { input?: { money: Sum, flag: __cedar::Bool } };
action bare attributes {};
"""


def ancestors(schema, uid, found=None):
    found = set() if found is None else found
    for parent in schema.actions[uid].parents:
        if parent not in found:
            found.add(parent)
            ancestors(schema, parent, found)
    return found


def test_actions_and_parents_are_those_that_cedarpy_makes():
    """Action entities equal cedarpy's own, names and references of every form resolved."""
    schema = load_schema(EVERYTHING)
    theirs = {
        (e["uid"]["type"], e["uid"]["id"]): {(p["type"], p["id"]) for p in e["parents"]}
        for e in json.loads(str(cedarpy.Entities.from_json_str("[]", EVERYTHING)))
        if e["uid"]["type"].split("::")[-1] == "Action"
    }
    assert {uid: ancestors(schema, uid) for uid in schema.actions} == theirs
    assert ("Other::Action", "top") in ancestors(schema, ("Shop::Action", "sell it"))


def test_entity_types_carry_full_names():
    """Parents, enumerated types and actions are found by the namespace that Cedar gives them."""
    schema = load_schema(EVERYTHING)
    assert schema.entities["Shop::Person"].parents == ("Shop::Group", "Shop::Team")
    assert schema.entities["Shop::Color"].enum == ("red", 'gr"een')
    assert schema.actions["Shop::Action", "buy"].principals == ("Shop::Person", "Shop::Team")
    assert schema.actions["Action", "read"].resources == ("Visitor",)


def test_shapes_name_the_kinds_of_arguments():
    """Aliases are resolved in their own namespace; optional attributes end in `?`; records nest."""
    shapes = input_shapes(load_schema(EVERYTHING))
    text = cells.of_string
    money = cells.of_record({"amount": text("Long"), "currency": text("String")})
    assert shapes["Shop::Action", "buy"] == cells.of_record(
        {
            "m": money,
            "n?": text("Set<String>"),
            "p": text("Entity<Shop::Person>"),
            "when": text("datetime"),
            "a b": text("Set<Set<Long>>"),
            "ip": text("ipaddr"),
        }
    )
    assert shapes["Action", "read"] == cells.of_record({"money": text("Long"), "flag": text("Bool")})
    assert ("Action", "bare") not in shapes


def test_arguments_that_no_call_can_fill_are_warned_about():
    """JSON gives no set of records and no input that is no record: such a rule would never match."""
    schema = load_schema(
        "entity A;"
        "action one appliesTo { principal: A, resource: A, context: { input: { rows: Set<{ a: Long }> } } };"
        "action two appliesTo { principal: A, resource: A, context: { input: Long } };"
    )
    first, second = undecodable(schema)
    assert "action `one`: `context.input` holds a set of records" in first
    assert "action `two`: `context.input` is no record" in second


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("entity", "schema: a name is expected, found the end (line 1, column 7)"),
        ("entity A;\nentity B {", "schema: a name is expected, found the end (line 2, column 11)"),
        ("entity A { x: }", "schema: a name is expected, found `}` (line 1, column 15)"),
        ("entity A\naction x;", "schema: `;` is expected, found `action` (line 2, column 1)"),
        ("thing A;", "schema: `entity`, `action`, `type` or `namespace` is expected, found `thing`"),
        ("entity A { x: Foo };", "schema: failed to resolve type: Foo"),
        ("type A = A;", "schema: "),
        ("entity $;", 'schema: unexpected "$" (line 1, column 8)'),
        ("entity A { x: " + "Set<" * 70 + "Long" + ">" * 70 + " };", "schema: nested deeper than 64 levels"),
        ("action a attributes { x: Long };", "schema: `}` is expected, found `x`"),
        (
            'entity A; action a appliesTo { principal: A, resource: A, context: { input: { "x?": Long } } };',
            "schema: attribute `x?` of `context.input` must not end in `?`",
        ),
    ],
)
def test_a_bad_schema_says_where(text, problem):
    """The place that Cedar's own parser names, or the path of a type that no argument can have."""
    with pytest.raises(PolicyError) as caught:
        input_shapes(load_schema(text))
    assert problem in str(caught.value)


def test_a_schema_may_not_be_endless():
    """The cap holds before the parser sees it."""
    with pytest.raises(PolicyError, match="at most 4194304 are compiled"):
        load_schema("//" + "x" * (4 << 20))
