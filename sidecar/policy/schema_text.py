"""Cedar schema text to declarations (Cedar docs "Human-readable schema grammar").

cedarpy judges whether a schema is right; this reader extracts what the compiler needs from one that is, and caps
nesting before cedarpy sees the text.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from sidecar.errors import PolicyError

DEPTH_MAX = 64

T = TypeVar("T")

_TOKEN = re.compile(
    r'\s+|//[^\n]*|(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>[A-Za-z_][A-Za-z0-9_]*)'
    r"|(?P<mark>::|[{}\[\]<>(),;:=?@])|(?P<bad>.)",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u\{([0-9a-fA-F_]+)\}|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_PLAIN = {"n": "\n", "r": "\r", "t": "\t", "0": "\0"}


@dataclass(frozen=True, slots=True)
class NameType:
    """A type by its name as written: `Long`, `ipaddr`, `NS::Person`, an alias."""

    name: str


@dataclass(frozen=True, slots=True)
class SetType:
    element: "Type"


@dataclass(frozen=True, slots=True)
class Attribute:
    type: "Type"
    required: bool


@dataclass(frozen=True, slots=True)
class RecordType:
    attributes: dict[str, Attribute]


@dataclass(frozen=True, slots=True)
class EntityRef:
    """The type of an attribute that holds an entity, by its full name; only resolving makes it (schema.py)."""

    name: str


Type = NameType | SetType | RecordType | EntityRef


@dataclass(slots=True)
class EntityDecl:
    """One entity type; `enum` holds the ids of an enumerated one."""

    name: str
    parents: tuple[str, ...] = ()
    shape: RecordType = field(default_factory=lambda: RecordType({}))
    tags: Type | None = None
    enum: tuple[str, ...] | None = None


@dataclass(slots=True)
class ActionDecl:
    """One action. A parent is (type path or None, id); None means an action of the same namespace."""

    name: str
    parents: list[tuple[str | None, str]] = field(default_factory=list)
    principals: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    context: Type | None = None


@dataclass(slots=True)
class NamespaceDecl:
    name: str
    entities: list[EntityDecl] = field(default_factory=list)
    actions: list[ActionDecl] = field(default_factory=list)
    types: dict[str, Type] = field(default_factory=dict)


def unescape(literal: str) -> str:
    """The text of a Cedar string literal with its quotes (Cedar grammar: Rust's escapes and `\\*`)."""

    def one(match: re.Match[str]) -> str:
        code = match.group(1) or match.group(2)
        return chr(int(code.replace("_", ""), 16)) if code else _PLAIN.get(match.group(3), match.group(3))

    return _ESCAPE.sub(one, literal[1:-1])


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


def _tokens(text: str) -> Iterator[_Token]:
    depth = 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind is None:
            continue
        token = _Token(kind, match.group(), match.start())
        if kind == "bad":
            raise PolicyError(f"schema: unexpected {json.dumps(token.text)} {_place(text, token.at)}")
        if token.text in ("{", "[", "<", "("):
            depth += 1
            if depth > DEPTH_MAX:
                raise PolicyError(f"schema: nested deeper than {DEPTH_MAX} levels {_place(text, token.at)}")
        elif token.text in ("}", "]", ">", ")"):
            depth -= 1
        yield token


def _place(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    return f"(line {line}, column {at - text.rfind(chr(10), 0, at)})"


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = [*_tokens(text), _Token("end", "", len(text))]
        self.at = 0

    # ------------------------------------------------------------ tokens

    @property
    def token(self) -> _Token:
        return self.tokens[self.at]

    def take(self, mark: str) -> bool:
        if self.token.text == mark and self.token.kind != "string":
            self.at += 1
            return True
        return False

    def need(self, mark: str) -> None:
        if not self.take(mark):
            raise self.unexpected(f"`{mark}`")

    def unexpected(self, wanted: str) -> PolicyError:
        found = f"`{self.token.text}`" if self.token.text else "the end"
        return PolicyError(f"schema: {wanted} is expected, found {found} {_place(self.text, self.token.at)}")

    def word(self) -> str:
        token = self.token
        if token.kind != "word":
            raise self.unexpected("a name")
        self.at += 1
        return token.text

    def name(self) -> str:
        """An identifier or a string."""
        if self.token.kind == "string":
            self.at += 1
            return unescape(self.tokens[self.at - 1].text)
        return self.word()

    def path(self) -> str:
        parts = [self.word()]
        while self.take("::"):
            parts.append(self.word())
        return "::".join(parts)

    def annotations(self) -> None:
        while self.take("@"):
            self.word()
            if self.take("("):
                self.at += 1
                self.need(")")

    # ------------------------------------------------------------ declarations

    def schema(self) -> list[NamespaceDecl]:
        top = NamespaceDecl("")
        out = [top]
        while self.token.kind != "end":
            self.annotations()
            if self.take("namespace"):
                space = NamespaceDecl(self.path())
                self.need("{")
                while not self.take("}"):
                    self.annotations()
                    self.declaration(space)
                out.append(space)
            else:
                self.declaration(top)
        return out

    def declaration(self, space: NamespaceDecl) -> None:
        if self.take("entity"):
            space.entities += self.entity()
        elif self.take("action"):
            space.actions += self.action()
        elif self.take("type"):
            name = self.word()
            self.need("=")
            space.types[name] = self.type()
        else:
            raise self.unexpected("`entity`, `action`, `type` or `namespace`")
        self.need(";")

    def entity(self) -> list[EntityDecl]:
        names = [self.word()]
        while self.take(","):
            names.append(self.word())
        if self.take("enum"):
            self.need("[")
            ids = tuple(self.listed("]", self.name))
            return [EntityDecl(name, enum=ids) for name in names]
        parents = tuple(self.paths()) if self.take("in") else ()
        self.take("=")
        shape = self.record() if self.take("{") else RecordType({})
        tags = self.type() if self.take("tags") else None
        return [EntityDecl(name, parents, shape, tags) for name in names]

    def action(self) -> list[ActionDecl]:
        names = [self.name()]
        while self.take(","):
            names.append(self.name())
        shared = ActionDecl("")
        if self.take("in"):
            shared.parents = self.listed("]", self.reference) if self.take("[") else [self.reference()]
        if self.take("appliesTo"):
            self.applies_to(shared)
        if self.take("attributes"):  # the grammar has them, and lets them be empty
            self.need("{")
            self.need("}")
        return [ActionDecl(name, shared.parents, shared.principals, shared.resources, shared.context) for name in names]

    def applies_to(self, action: ActionDecl) -> None:
        self.need("{")
        while not self.take("}"):
            part = self.word()
            self.need(":")
            if part == "principal":
                action.principals = tuple(self.paths())
            elif part == "resource":
                action.resources = tuple(self.paths())
            else:
                action.context = self.type()
            self.take(",")

    def reference(self) -> tuple[str | None, str]:
        if self.token.kind == "string":
            return None, self.name()
        parts = [self.word()]
        while self.take("::"):
            if self.token.kind == "string":
                return "::".join(parts), self.name()
            parts.append(self.word())
        return None, parts[-1]

    # ------------------------------------------------------------ types

    def listed(self, close: str, item: Callable[[], T]) -> list[T]:
        out: list[T] = []
        while not self.take(close):
            out.append(item())
            if not self.take(","):
                self.need(close)
                break
        return out

    def paths(self) -> list[str]:
        return self.listed("]", self.path) if self.take("[") else [self.path()]

    def type(self) -> Type:
        if self.take("{"):
            return self.record()
        name = self.path()
        if name == "Set" and self.take("<"):
            element = self.type()
            self.need(">")
            return SetType(element)
        return NameType(name)

    def record(self) -> RecordType:
        """The attributes up to `}`; the opening bracket was taken."""
        attributes: dict[str, Attribute] = {}
        while not self.take("}"):
            self.annotations()
            name = self.name()
            required = not self.take("?")
            self.need(":")
            attributes[name] = Attribute(self.type(), required)
            if not self.take(","):
                self.need("}")
                break
        return RecordType(attributes)


def read_declarations(text: str) -> list[NamespaceDecl]:
    """The namespaces of a schema; the one without a name comes first. PolicyError names line and column."""
    return _Reader(text).schema()
