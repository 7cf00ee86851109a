"""Reads the configuration file: YAML to typed sections, with every problem listed at once."""

import dataclasses
import os
import pathlib
import types
import typing
from typing import Annotated, Any

import msgspec

from sidecar import yaml_text
from sidecar.config import Config, check
from sidecar.errors import ConfigError
from sidecar.files import UnusableFile, read_text, shown

FILE_BYTES_MAX = 1 << 20


@dataclasses.dataclass
class _Reader:
    """Walks types and values together; collects problems instead of stopping at the first."""

    folder: pathlib.Path
    problems: list[str]

    def value(self, kind: Any, raw: Any, path: str) -> Any:
        meta, kind = _unwrap(kind, raw)
        origin = typing.get_origin(kind)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and not kind.__struct_config__.tag:
            return self.section(kind, raw, path)
        if origin is list and isinstance(raw, list):
            (item,) = typing.get_args(kind)
            return [self.value(item, one, f"{path}[{i}]") for i, one in enumerate(raw)]
        if origin is dict and isinstance(raw, dict):
            name, item = typing.get_args(kind)
            return {self.value(name, k, f"{path}.{k}"): self.value(item, v, f"{path}.{k}") for k, v in raw.items()}
        if origin is typing.Literal and isinstance(raw, bool):
            raw = "on" if raw else "off"  # which YAML 1.1 takes for booleans
        try:
            found = msgspec.convert(raw, Annotated[kind, *meta] if meta else kind, strict=True)
        except msgspec.ValidationError as error:
            self.problem(path, str(error))
            return None
        if isinstance(found, str) and not _writable(found):
            self.problem(path, "has a NUL character or half of a surrogate pair, which no name can have")
            return None
        if any((m.extra or {}).get("path") for m in meta) and found:
            return os.path.normpath(self.folder / found)
        return found

    def section(self, kind: type[msgspec.Struct], raw: Any, path: str) -> Any:
        if not isinstance(raw, dict):
            self.problem(path, f"expected a section with keys, got `{type(raw).__name__}`")
            return None
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = {f.encode_name: f for f in msgspec.structs.fields(kind) if not hidden(hints[f.name])}
        before, found = len(self.problems), {}
        for key, value in raw.items():
            if key not in fields:
                known = ", ".join(sorted(fields))
                self.problem(_join(path, key), f"unknown key; known here: {known}")
            else:
                found[fields[key].name] = self.value(hints[fields[key].name], value, _join(path, key))
        for name, field in fields.items():
            if field.required and name not in raw:
                self.problem(_join(path, name), "is missing and has no default")
        if len(self.problems) > before:
            return None
        try:
            return kind(**found)
        except (TypeError, ValueError) as error:  # a section's own __post_init__ check
            self.problem(path, str(error))
            return None

    def problem(self, path: str, cause: str) -> None:
        text = cause[:1].lower() + cause[1:]
        self.problems.append(f"`{path or 'file'}`: {text.rstrip('.')}")


def hidden(hint: Any) -> bool:
    """Whether a field is set by us and cannot stand in the file."""
    return any((m.extra or {}).get("hidden") for m in getattr(hint, "__metadata__", ()) if isinstance(m, msgspec.Meta))


def _writable(text: str) -> bool:
    """Whether the text can be a path, a name or a line: YAML's escapes can make what no system call takes."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _unwrap(kind: Any, raw: Any) -> tuple[list[msgspec.Meta], Any]:
    """Take `Annotated` and `X | None` apart: (all Meta, the bare type)."""
    meta: list[msgspec.Meta] = []
    while True:
        if hasattr(kind, "__metadata__"):
            meta += [m for m in kind.__metadata__ if isinstance(m, msgspec.Meta)]
            kind = kind.__origin__
        elif isinstance(kind, types.UnionType) and raw is not None and len(kind.__args__) == 2:
            kind = next(a for a in kind.__args__ if a is not type(None))
        else:
            return meta, kind


def parse(text: str, file: str) -> Config:
    """The configuration in `text`, checked whole. Raises ConfigError with all problems found.

    Relative paths are relative to the folder of `file`.
    """
    try:
        raw = yaml_text.load(text)
    except yaml_text.BadYaml as error:
        raise ConfigError(f"`{file}` is not YAML that can be used: {error}") from None
    reader = _Reader(pathlib.Path(file).absolute().parent, [])
    config = reader.value(Config, {} if raw is None else raw, "")
    if config is not None:
        config = msgspec.structs.replace(config, file=os.path.abspath(file))
        reader.problems += check(config)
    if reader.problems:
        lines = tuple(reader.problems)
        head = f"{file}: {len(lines)} problem{'s' if len(lines) > 1 else ''}: "
        raise ConfigError(head + "; ".join(lines), lines)
    return config


def load(file: str | os.PathLike[str]) -> Config:
    """The configuration in `file`. Raises ConfigError when it cannot be read or used."""
    name = os.fspath(file)
    try:
        text = read_text(name, FILE_BYTES_MAX)
    except UnusableFile as error:
        raise ConfigError(f"`{shown(name)}` {error}; name a UTF-8 file with --config") from None
    return parse(text, name)
