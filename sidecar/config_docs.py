"""The documentation of the configuration, taken from the types that read it."""

import ast
import functools
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from sidecar.config import Config
from sidecar.config_file import hidden


class Field(NamedTuple):
    """One key of the file: dotted path (`[]` for an item of a list), unit, default as YAML, and what it means."""

    path: str
    unit: str
    default: str
    text: str


def documentation(kind: type[msgspec.Struct] = Config, above: str = "") -> Iterator[Field]:
    """Every field of the file, sections first, in the order of the types."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        if hidden(hint):
            continue
        path = f"{above}.{field.encode_name}" if above else field.encode_name
        text, unit, bare = _described(hint)
        text = text or _attribute_docstrings(kind).get(field.name, "")
        section = _section(bare)
        if section is not None:
            text = text or (section.__doc__ or "").strip().split("\n")[0].rstrip(".")
        yield Field(path, unit, _default(field), text)
        if section is not None:
            yield from documentation(section, path + ("[]" if typing.get_origin(bare) is list else ""))


def _described(hint: Any) -> tuple[str, str, Any]:
    text = unit = ""
    while hasattr(hint, "__metadata__"):
        for meta in reversed(hint.__metadata__):
            if isinstance(meta, msgspec.Meta):
                text = text or meta.description or ""
                unit = unit or str((meta.extra or {}).get("unit", ""))
        hint = hint.__origin__
    if typing.get_origin(hint) is typing.Literal:
        unit = unit or " | ".join(str(a) for a in typing.get_args(hint))
    return text, unit, hint


@functools.cache
def _attribute_docstrings(kind: type) -> dict[str, str]:
    """{field: first line of the string below it}, for sections that document fields that way."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    found: dict[str, str] = {}
    members = body.body if isinstance(body, ast.ClassDef) else []
    for field, below in itertools.pairwise(members):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split()).rstrip(".")
    return found


def _section(hint: Any) -> type[msgspec.Struct] | None:
    """The struct behind `S`, `S | None` or `list[S]`."""
    choices = hint.__args__ if isinstance(hint, types.UnionType) or typing.get_origin(hint) is list else (hint,)
    return next((c for c in choices if isinstance(c, type) and issubclass(c, msgspec.Struct)), None)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if isinstance(value, msgspec.Struct):
        return ""
    if value is None:
        return "absent"
    return msgspec.json.encode(value).decode()
