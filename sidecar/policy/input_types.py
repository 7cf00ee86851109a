"""JSON Schema of a tool's arguments to the Cedar type of `context.input`.

string, enum of strings: String; integer: Long; number: decimal; boolean: Bool; object: record; array: Set. What has no
Cedar type is left out with a warning: no policy can read it then, and calls may still carry it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

DEPTH_MAX = 16
NAME_BYTES_MAX = 256  # of an attribute, as fastpath.arguments looks it up
INDENT = "  "

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = frozenset(("true", "false", "if", "then", "else", "in", "is", "like", "has", "Set"))
_SCALARS = {"string": "String", "integer": "Long", "number": "decimal", "boolean": "Bool"}


class InputTypes:
    """Turns the input schemas of one tool list into types and collects what was left out."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def record(self, tool: str, schema: Any, indent: str = "") -> str:
        """The record type of a tool's whole `inputSchema`; `{}` when it declares nothing."""
        root = schema if isinstance(schema, Mapping) else {}
        return self._object(root, root, tool, indent, DEPTH_MAX)

    def _object(self, schema: Mapping[str, Any], root: Mapping[str, Any], where: str, indent: str, depth: int) -> str:
        properties = schema.get("properties")
        required = schema.get("required")
        needed = set(required) if isinstance(required, list) else set()
        lines = []
        for name, inner in sorted(properties.items()) if isinstance(properties, Mapping) else ():
            type_, optional = self._member(name, inner, root, f"{where}.{name}", indent + INDENT, depth - 1)
            if type_ is None:
                lines.append(f"{indent}{INDENT}// `{_shown(name)}` is left out: it has no Cedar type")
                continue
            mark = "" if name in needed and not optional else "?"
            lines.append(f"{indent}{INDENT}{attribute_name(name)}{mark}: {type_},")
        return "{\n" + "\n".join(lines) + f"\n{indent}}}" if lines else "{}"

    def _member(
        self, name: str, schema: Any, root: Mapping[str, Any], where: str, indent: str, depth: int
    ) -> tuple[str | None, bool]:
        """(type or None, whether null is allowed too) of one property."""
        if name.endswith("?") or not name or len(name.encode()) > NAME_BYTES_MAX:
            return self._left_out(where, "its name cannot be an attribute"), False
        return self._type(schema, root, where, indent, depth)

    def _left_out(self, where: str, cause: str) -> str | None:
        """Note it; None, for the caller to pass on as the type."""
        self.warnings.append(f"`{_shown(where)}` is left out: {cause}")
        return None

    def _type(
        self, schema: Any, root: Mapping[str, Any], where: str, indent: str, depth: int
    ) -> tuple[str | None, bool]:
        if depth < 1:
            return self._left_out(where, f"it is nested deeper than {DEPTH_MAX} levels"), False
        if not isinstance(schema, Mapping):
            return self._left_out(where, "its schema says nothing"), False
        if "$ref" in schema:
            return self._type(_referenced(schema["$ref"], root), root, where, indent, depth - 1)
        kind, nullable, chosen = _single(schema)
        if kind == "array":
            return self._array(chosen, root, where, indent, depth), nullable
        if kind == "object":
            return self._object(chosen, root, where, indent, depth), nullable
        if kind == "number":
            self.warnings.append(
                f"`{_shown(where)}` is decimal: a call with more than 4 digits behind the point is refused"
            )
        if kind in _SCALARS:
            return _SCALARS[kind], nullable
        if chosen is not schema:
            inner, also_null = self._type(chosen, root, where, indent, depth - 1)
            return inner, nullable or also_null
        return self._left_out(where, "it has no single type"), False

    def _array(
        self, schema: Mapping[str, Any], root: Mapping[str, Any], where: str, indent: str, depth: int
    ) -> str | None:
        inner, nullable = self._type(schema.get("items"), root, f"{where}[]", indent, depth - 1)
        if inner is None:
            return None
        if inner.startswith("{"):
            return self._left_out(where, "Cedar would need a set of records")
        if nullable:
            return self._left_out(where, "a set has no null member")
        return f"Set<{inner}>"


def _single(schema: Mapping[str, Any]) -> tuple[str | None, bool, Mapping[str, Any]]:
    """(JSON type or None, whether null is allowed, the schema that describes it) when there is one way to read it."""
    kind = schema.get("type")
    if isinstance(kind, list):
        kinds = [one for one in kind if one != "null"]
        return (kinds[0] if len(kinds) == 1 else None), "null" in kind, schema
    if isinstance(kind, str):
        return kind, False, schema
    for key in ("anyOf", "oneOf"):
        ways = schema.get(key)
        if isinstance(ways, list):
            real = [one for one in ways if not (isinstance(one, Mapping) and one.get("type") == "null")]
            if len(real) == 1 and isinstance(real[0], Mapping):
                return None, len(real) < len(ways), real[0]
            return None, False, schema
    return _of_values(schema), False, schema


def _of_values(schema: Mapping[str, Any]) -> str | None:
    """The JSON type of an untyped enum or const, when all its values have one."""
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    kinds = {type(value) for value in values} if isinstance(values, list) else set()
    named = {str: "string", int: "integer", bool: "boolean", float: "number"}
    return named.get(kinds.pop()) if len(kinds) == 1 else None


def _referenced(reference: Any, root: Mapping[str, Any]) -> Any:
    """What a reference inside the same document means (JSON Pointer, RFC 6901); None for any other."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    found: Any = root
    for part in reference[2:].split("/"):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part.replace("~1", "/").replace("~0", "~"))
    return found


def attribute_name(name: str) -> str:
    """The name as it stands in a schema: bare when it can, else quoted."""
    return name if _PLAIN_NAME.fullmatch(name) and name not in _RESERVED else quoted(name)


def quoted(text: str) -> str:
    """A Cedar string literal (Cedar grammar: STR)."""
    out = []
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif char < " " or char == "\x7f":
            out.append(f"\\u{{{ord(char):x}}}")
        else:
            out.append(char)
    return '"' + "".join(out) + '"'


def _shown(text: str) -> str:
    """Foreign text in a comment or warning: one line, short."""
    return json.dumps(text, ensure_ascii=True)[1:-1][:120]
