"""An MCP server's tool list to Cedar: one action per tool under its class, typed arguments, and entities to fill in.

What a server says of its own tools can make them look more dangerous, never more harmless (sidecar.policy.tool_class).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.errors import PolicyError
from sidecar.policy.input_types import InputTypes, attribute_name, quoted
from sidecar.policy.schema_text import (
    ActionDecl,
    NamespaceDecl,
    NameType,
    RecordType,
    SetType,
    Type,
    read_declarations,
)
from sidecar.policy.tool_class import DANGER, ToolClass, classify
from sidecar.policy.vocabulary import vocabulary

TOOLS_MAX = 10_000
NAME_BYTES_MAX = 512
LEVEL_UNKNOWN = 4  # until someone looked at the tool, it is taken to touch the most sensitive data
_SERVER = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_REVERSIBLE = ("list", "read", "write")


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: its action's name, its class and where that comes from."""

    name: str
    uid: str
    class_: ToolClass
    descriptor: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GeneratedSchema:
    """Cedar schema text, entities (Cedar JSON), and what a person should look at."""

    schema: str
    entities: list[dict[str, Any]]
    warnings: tuple[str, ...]
    tools: tuple[Tool, ...]


def read_tools(document: str | bytes) -> list[dict[str, Any]]:
    """The tool descriptors in JSON text: an answer to tools/list, its result, or the list itself.

    Raises PolicyError for anything else.
    """
    try:
        found = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"the tool list is not JSON: {str(error)[:200]}") from None
    for key in ("result", "tools"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise PolicyError("the tool list holds no `tools`; give the answer of the server to tools/list")
    return found


def generate_schema(
    tools: Sequence[Mapping[str, Any]],
    server: str,
    *,
    base: str | None = None,
    classes: Mapping[str, str] | None = None,
) -> GeneratedSchema:
    """A schema in which every tool of `server` is an action with typed arguments.

    `tools` are descriptors as in an answer to tools/list; `server` is the name that the mapping gives the server.
    `base` is the schema to extend: it must declare the class actions (`read`, `send`, ..) and is the agents' vocabulary
    when absent; what was generated into it for the same server is replaced. `classes` says a tool's class by "tool" or
    "server/tool". Raises PolicyError that names the tool or the field at fault.
    """
    if not _SERVER.fullmatch(server):
        raise PolicyError(f"`{server[:128]}` cannot name a server; use 1 to 128 of A-Z a-z 0-9 _ . -")
    listed = _listed(tools, server, classes or {})
    text = _without_block(vocabulary() if base is None else base, server)
    space = _class_space(text)
    _refuse_declared(space, listed)
    types = InputTypes()
    block = _block(server, [_action(tool, space, types) for tool in listed])
    warnings = [*_class_warnings(listed), *types.warnings]
    entities = _entities(listed, server, space)
    return GeneratedSchema(_inserted(text, block, space), entities, tuple(warnings), tuple(listed))


# ---------------------------------------------------------------- tools


def _listed(tools: Sequence[Mapping[str, Any]], server: str, classes: Mapping[str, str]) -> list[Tool]:
    """The tools by name, classified."""
    if len(tools) > TOOLS_MAX:
        raise PolicyError(f"{len(tools)} tools; at most {TOOLS_MAX} are generated")
    for tool, class_ in classes.items():
        if class_ not in DANGER:
            raise PolicyError(f"class of `{tool}`: `{class_}` is unknown; use one of {', '.join(DANGER)}")
    found: dict[str, Tool] = {}
    name: Any
    for i, descriptor in enumerate(tools):
        name = descriptor.get("name")
        if not isinstance(name, str) or not name or _CONTROL.search(name) or len(name.encode()) > NAME_BYTES_MAX:
            raise PolicyError(f"tool {i} has no usable `name`: {json.dumps(name)[:100]}")
        if name in found:
            raise PolicyError(f"tool `{name}` stands twice in the list")
        uid = f"{server}/{name}"
        operator = classes.get(uid, classes.get(name))
        found[name] = Tool(name, uid, classify(name, descriptor.get("annotations"), operator), descriptor)
    return [found[name] for name in sorted(found)]


def _class_warnings(tools: Sequence[Tool]) -> list[str]:
    return [
        f"tool `{tool.name}`: its name says nothing of what it does, so it is `execute`; name its class if it is not"
        for tool in tools
        if tool.class_.source == "unknown"
    ]


# ---------------------------------------------------------------- the schema to extend


def _markers(server: str) -> tuple[str, str]:
    return f"// begin: tools of `{server}`, generated", f"// end: tools of `{server}`"


def _without_block(text: str, server: str) -> str:
    """The schema without what an earlier run wrote for this server."""
    begin, end = (re.escape(marker) for marker in _markers(server))
    return re.sub(rf"^[ \t]*{begin}.*?^[ \t]*{end}\n?", "", text, flags=re.M | re.S)


def _class_space(text: str) -> NamespaceDecl:
    """The namespace that declares the class actions."""
    spaces = read_declarations(text)
    for space in spaces:
        if "read" in {action.name for action in space.actions}:
            break
    else:
        raise PolicyError(f"the schema declares no class actions; declare {', '.join(DANGER)} or leave it out")
    missing = [name for name in DANGER if name not in {action.name for action in space.actions}]
    if missing:
        raise PolicyError(f"the schema lacks the class actions {', '.join(missing)}; declare them beside `read`")
    if space.name and (space is not spaces[-1] or not text.rstrip().endswith("}")):
        raise PolicyError(f"namespace `{space.name}` must end the schema, since its tools are added at its end")
    return space


def _refuse_declared(space: NamespaceDecl, tools: Sequence[Tool]) -> None:
    taken = {action.name for action in space.actions}
    for tool in tools:
        if tool.uid in taken:
            raise PolicyError(f'the schema declares action "{tool.uid}" already; take it out to generate it')


def _inserted(text: str, block: str, space: NamespaceDecl) -> str:
    if not space.name:
        return f"{text.rstrip()}\n\n{block}"
    body = text.rstrip()[:-1].rstrip()
    return f"{body}\n\n{block}}}\n"


# ---------------------------------------------------------------- actions


def _block(server: str, actions: list[str]) -> str:
    begin, end = _markers(server)
    return "\n".join([begin, *actions, end]) + "\n"


def _declared(space: NamespaceDecl, name: str) -> ActionDecl:
    return next(action for action in space.actions if action.name == name)


def _action(tool: Tool, space: NamespaceDecl, types: InputTypes) -> str:
    """The declaration of one tool's action: principals and context are those of its class, plus the arguments."""
    class_ = _declared(space, tool.class_.name)
    principals = ", ".join(class_.principals)
    context = [f"    {attribute_name(name)}{mark}: {type_}," for name, mark, type_ in _context_of(class_, space)]
    arguments = types.record(tool.uid, tool.descriptor.get("inputSchema"), "    ")
    return "\n".join(
        [
            f"// class by {tool.class_.source}",
            f"action {quoted(tool.uid)} in [{attribute_name(class_.name)}] appliesTo {{",
            f"  principal: [{principals}],",
            "  resource: [Tool],",
            "  context: {",
            *context,
            f"    input: {arguments}",
            "  }",
            "};",
        ]
    )


def _context_of(class_: ActionDecl, space: NamespaceDecl) -> list[tuple[str, str, str]]:
    """(name, `?` or nothing, type text) of the context attributes of a class action, without `input`."""
    context: Type | None = class_.context
    while isinstance(context, NameType):
        context = space.types.get(context.name)
    if context is None:
        return []
    if not isinstance(context, RecordType):
        raise PolicyError(f"the context of action `{class_.name}` is no record")
    return [
        (name, "" if attribute.required else "?", _type_text(attribute.type))
        for name, attribute in context.attributes.items()
        if name != "input"
    ]


def _type_text(type_: Type) -> str:
    if isinstance(type_, SetType):
        return f"Set<{_type_text(type_.element)}>"
    if isinstance(type_, RecordType):
        members = (
            f"{attribute_name(name)}{'' if one.required else '?'}: {_type_text(one.type)}"
            for name, one in type_.attributes.items()
        )
        return "{ " + ", ".join(members) + " }"
    return type_.name


# ---------------------------------------------------------------- entities


def _entities(tools: Sequence[Tool], server: str, space: NamespaceDecl) -> list[dict[str, Any]]:
    """A Server and its Tools with every attribute that the schema requires, at its most careful value."""
    server_uid = _uid(space, "Server", server)
    out: list[dict[str, Any]] = [
        {"uid": server_uid, "attrs": _attributes(space, "Server", {"pinned": False}), "parents": []}
    ]
    for tool in tools:
        values = {
            "level": LEVEL_UNKNOWN,
            "labels": [],
            "untrusted_output": True,
            "reversible": tool.class_.name in _REVERSIBLE,
            "pinned": False,
        }
        attributes = _attributes(space, "Tool", values)
        out.append({"uid": _uid(space, "Tool", tool.uid), "attrs": attributes, "parents": [server_uid]})
    return out


def _uid(space: NamespaceDecl, type_: str, id_: str) -> dict[str, str]:
    return {"type": f"{space.name}::{type_}" if space.name else type_, "id": id_}


def _attributes(space: NamespaceDecl, type_: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of the values those that the type declares; PolicyError for a required attribute that has none."""
    declared = next((one for one in space.entities if one.name == type_), None)
    if declared is None:
        raise PolicyError(f"the schema declares no entity type `{type_}`, which tools need")
    for name, attribute in declared.shape.attributes.items():
        if attribute.required and name not in values:
            raise PolicyError(f"`{type_}` requires `{name}`, which a tool list does not say; make it optional")
    return {name: value for name, value in values.items() if name in declared.shape.attributes}
