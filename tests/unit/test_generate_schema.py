"""`generate_schema`: an MCP tool list becomes actions with typed arguments, and no tool makes itself look harmless."""

import json
import os
import pathlib
from typing import Any

import cedarpy
import pytest

from fastpath.columns import COLUMNS
from sidecar.errors import PolicyError
from sidecar.policy.compile import compile_image
from sidecar.policy.entities import load_entities
from sidecar.policy.generate_schema import GeneratedSchema, generate_schema, read_tools
from sidecar.policy.schema import load_schema
from sidecar.policy.tool_class import classify
from sidecar.policy.vocabulary import vocabulary

SEND = {
    "name": "send_money",
    "inputSchema": {
        "type": "object",
        "properties": {
            "to": {"type": "string"},
            "amount": {"type": "integer"},
            "urgent": {"type": "boolean"},
            "rate": {"type": "number"},
            "currency": {"enum": ["EUR", "USD"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "address": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
        "required": ["to", "amount", "address"],
    },
}


def generate(*tools: dict[str, Any], **options: Any) -> GeneratedSchema:
    return generate_schema(list(tools), "bank", **options)


def input_of(schema: dict[str, Any], name: str = "get_x") -> str:
    """The generated type of `input`, on one line."""
    text = generate({"name": name, "inputSchema": schema}).schema
    return " ".join(text.split("    input: ")[1].split("\n  }\n};")[0].split())


def test_each_tool_is_an_action_under_its_class_with_typed_arguments() -> None:
    """string, integer, boolean, number, enum, array and object; what is not required is optional."""
    made = generate(SEND)
    assert 'action "bank/send_money" in [send] appliesTo {' in made.schema
    assert input_of(SEND["inputSchema"]) == (
        "{ address: { city: String, }, amount: Long, currency?: String, rate?: decimal, tags?: Set<String>, "
        "to: String, urgent?: Bool, }"
    )


def test_the_schema_validates_and_policies_read_typed_arguments() -> None:
    """cedarpy accepts the schema and a policy over the arguments, and refuses one that misreads their type."""
    made = generate(SEND, {"name": "get_balance"})
    entities = load_entities(json.dumps(made.entities), load_schema(made.schema).handle)
    assert {row.uid for row in entities} >= {("Server", "bank"), ("Tool", "bank/send_money")}
    policy = '@id("p") forbid (principal, action == Action::"bank/send_money", resource) when { %s };'
    compiled = compile_image(policy % "context.input.amount > 100", schema=made.schema, entities=made.entities)
    assert compiled.report.policies == 1
    with pytest.raises(PolicyError):
        compile_image(policy % 'context.input.amount == "100"', schema=made.schema)
    with pytest.raises(PolicyError):
        compile_image(policy % 'context.input.rate.lessThan(decimal("1.0"))', schema=made.schema)


def test_the_vocabulary_names_every_live_column() -> None:
    """What the sidecar sets and what the schema declares are one list."""
    schema = load_schema(vocabulary())
    context = schema.actions[("Action", "read")].context.attributes
    for path, _, absent in COLUMNS:
        group, _, name = path.partition(".")
        attribute = context[group].type.attributes[name] if name else context[group]
        assert attribute.required == (absent is not None), path


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, "{}"),
        ({"type": "object"}, "{}"),
        ({"properties": {"a": {"type": ["string", "null"]}}, "required": ["a"]}, "{ a?: String, }"),
        ({"properties": {"a": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}, "required": ["a"]}, "{ a?: Long, }"),
        ({"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "boolean"}}}, "{ a?: Bool, }"),
        ({"properties": {"a b": {"type": "string"}, "if": {"type": "string"}}}, '{ "a b"?: String, "if"?: String, }'),
        ({"properties": {"a": {"const": 5}}}, "{ a?: Long, }"),
        ({"properties": {"a": {"type": "object"}}}, "{ a?: {}, }"),
        (
            {"properties": {"a": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}}},
            "{ a?: Set<Set<Long>>, }",
        ),
    ],
)
def test_what_json_schema_can_say(schema: dict[str, Any], expected: str) -> None:
    """Nullable members are optional, local references are followed, odd names are quoted."""
    assert input_of(schema) == expected


RECURSIVE = {"properties": {"a": {"$ref": "#/$defs/t"}}, "$defs": {"t": {"$ref": "#/$defs/t"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {}}},
        {"properties": {"a": True}},
        {"properties": {"a": {"type": ["string", "integer"]}}},
        {"properties": {"a": {"oneOf": [{"type": "string"}, {"type": "integer"}]}}},
        {"properties": {"a": {"enum": ["x", 1]}}},
        {"properties": {"a": {"type": "array"}}},
        {"properties": {"a": {"type": "array", "items": {"type": "object", "properties": {}}}}},
        {"properties": {"a": {"type": "array", "items": {"type": ["string", "null"]}}}},
        {"properties": {"a?": {"type": "string"}}},
        {"properties": {"x" * 300: {"type": "string"}}},
        {"properties": {"a": {"$ref": "https://example.org/schema"}}},
        {"properties": {"a\n}; action evil;": {}}},
        RECURSIVE,
    ],
)
def test_what_has_no_cedar_type_is_left_out_with_a_warning(schema: dict[str, Any]) -> None:
    """A comment in the schema and a warning say so; the rest still validates."""
    made = generate({"name": "get_x", "inputSchema": schema})
    assert len(made.warnings) == 1
    assert "is left out" in made.schema
    load_schema(made.schema)


CLASSES = [
    ("list_accounts", None, None, "list", "name"),
    ("getBalance", None, None, "read", "name"),
    ("search-docs", {"readOnlyHint": True}, None, "read", "name"),
    ("update_record", None, None, "write", "name"),
    ("delete_account", {"readOnlyHint": True}, None, "delete", "name"),
    ("get_and_delete_mail", None, None, "delete", "name"),
    ("send_email", None, None, "send", "name"),
    ("run_query", None, None, "execute", "name"),
    ("frobnicate", {"readOnlyHint": True, "destructiveHint": False}, None, "execute", "unknown"),
    ("get_balance", {"destructiveHint": True}, None, "delete", "annotations"),
    ("get_balance", {"readOnlyHint": False}, None, "delete", "annotations"),
    ("get_balance", {"readOnlyHint": False, "destructiveHint": False}, None, "write", "annotations"),
    ("update_page", {"readOnlyHint": False, "openWorldHint": True}, None, "send", "annotations"),
    ("send_email", {"readOnlyHint": False, "destructiveHint": True}, None, "send", "name"),
    ("delete_account", None, "read", "read", "operator"),
    ("frobnicate", {"destructiveHint": True}, "list", "list", "operator"),
    ("get_x", "not an object", None, "read", "name"),
]


@pytest.mark.parametrize(("tool", "annotations", "operator", "class_", "source"), CLASSES)
def test_a_server_can_only_raise_the_class_of_its_tools(
    tool: str, annotations: Any, operator: str | None, class_: str, source: str
) -> None:
    """Operator first, then the verb of the name; annotations move a tool only towards the more dangerous."""
    assert classify(tool, annotations, operator) == (class_, source)


def test_the_operator_names_classes_by_tool_or_by_server_and_tool() -> None:
    """Both forms work; a class that does not exist is refused."""
    assert '"bank/frob" in [read]' in generate({"name": "frob"}, classes={"bank/frob": "read"}).schema
    assert '"bank/frob" in [read]' in generate({"name": "frob"}, classes={"frob": "read"}).schema
    with pytest.raises(PolicyError, match="`reed` is unknown"):
        generate({"name": "frob"}, classes={"frob": "reed"})


def test_generating_again_replaces_what_was_generated() -> None:
    """A schema can be the base of the next run; other servers' tools stay."""
    first = generate_schema([{"name": "get_a"}], "one").schema
    both = generate_schema([{"name": "get_b"}], "two", base=first).schema
    again = generate_schema([{"name": "get_c"}], "one", base=both).schema
    names = {id_ for _, id_ in load_schema(again).actions}
    assert {"one/get_c", "two/get_b"} <= names
    assert "one/get_a" not in names


def test_a_users_own_schema_can_be_the_base() -> None:
    """Principals, context and namespace are those of its class actions; entities carry what its types declare."""
    own = """namespace Acme {
      entity Bot; entity Server; entity Tool in [Server] { level: Long };
      action list, read, write, delete, send, execute, admin
        appliesTo { principal: [Bot], resource: [Tool], context: { note?: String } };
    }"""
    made = generate({"name": "get_a", "inputSchema": {"properties": {"x": {"type": "integer"}}}}, base=own)
    schema = load_schema(made.schema)
    action = schema.actions[("Acme::Action", "bank/get_a")]
    assert set(action.context.attributes) == {"note", "input"}
    assert made.entities[1]["attrs"] == {"level": 4}
    load_entities(json.dumps(made.entities), schema.handle)


@pytest.mark.parametrize(
    ("base", "cause"),
    [
        ("entity Agent;", "no class actions"),
        ("action read;", "lacks the class actions"),
        (vocabulary() + 'action "bank/get_a";', "declares action"),
        ("entity {", "schema"),
        (vocabulary().replace("reversible: Bool,", "reversible: Bool, hash: String,"), "requires `hash`"),
    ],
)
def test_a_base_that_cannot_be_extended_is_refused(base: str, cause: str) -> None:
    """The message names what is missing."""
    with pytest.raises(PolicyError, match=cause):
        generate({"name": "get_a"}, base=base)


@pytest.mark.parametrize(
    "tools",
    [[{}], [{"name": ""}], [{"name": 5}], [{"name": "a\nb"}], [{"name": "x" * 600}], [{"name": "a"}, {"name": "a"}]],
)
def test_tools_without_a_usable_name_are_refused(tools: list[dict[str, Any]]) -> None:
    """Missing, empty, not text, control characters, too long, twice."""
    with pytest.raises(PolicyError, match="tool"):
        generate_schema(tools, "bank")


def test_a_hostile_name_stays_inside_its_quotes() -> None:
    """A tool's name cannot add declarations to the schema."""
    made = generate(
        {"name": 'x" in [list]; action "y', "inputSchema": {"properties": {'a": Long, "b': {"type": "string"}}}}
    )
    assert ("Action", 'bank/x" in [list]; action "y') in load_schema(made.schema).actions


@pytest.mark.parametrize(
    "document",
    ['{"tools":[{"name":"a"}]}', '{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"a"}]}}', '[{"name":"a"}]'],
)
def test_tool_lists_are_read_in_each_form(document: str) -> None:
    """The whole answer, its result, or the list."""
    assert read_tools(document) == [{"name": "a"}]


@pytest.mark.parametrize("document", ["", "{", "5", '{"a":1}', "[5]", '{"tools":{}}', "[" * 100_000])
def test_what_is_no_tool_list_is_refused(document: str) -> None:
    """With a sentence, never with a traceback."""
    with pytest.raises(PolicyError, match="tool list"):
        read_tools(document)


def test_the_reference_schema_can_be_the_base() -> None:
    """The schema of the shared examples extends as well."""
    folder = os.environ.get("REMIT_EXAMPLES")
    if not folder:
        pytest.skip("REMIT_EXAMPLES does not name the folder of agents.cedarschema")
    base = pathlib.Path(folder, "agents.cedarschema").read_text()
    made = generate(SEND, base=base)
    load_entities(json.dumps(made.entities), cedarpy.Schema.from_str(made.schema))
