"""Cedar policy text to parsed policies: split by our lexer, parsed by cedarpy, chunk by chunk."""

import marshal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cedarpy
import msgspec

from sidecar.errors import PolicyError
from sidecar.policy import deepjson
from sidecar.policy.cores import in_order
from sidecar.policy.drafts import Draft, draft_of
from sidecar.policy.lexer import Piece, PolicyText, split
from sidecar.policy.limits import PolicyLimits
from sidecar.policy.literals import fill_est, fill_text
from sidecar.policy.shapes import Key, Shape, Shapes

T = TypeVar("T")
First = tuple[Piece, Shape]
"""A shape and the first policy that has it."""

# A chunk bounds the memory of one call to cedarpy and the search for the policy that it refuses.
CHUNK_POLICIES = 128
CHUNK_BYTES = 1 << 20


def unheard(_text: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """One policy or template: its text and place, and its shape's Cedar JSON form ("EST")."""

    piece: Piece
    shape: Shape
    position: int

    @property
    def template(self) -> bool:
        return self.shape.template

    @property
    def est(self) -> dict[str, Any]:
        """The JSON form of this very policy; made at every call."""
        est: dict[str, Any] = fill_est(self.shape.est, self.piece.values) if self.piece.values else self.shape.est
        return est

    @property
    def annotations(self) -> dict[str, str]:
        """Annotations by name; one without a value has the empty text (Cedar docs "Annotations")."""
        values = self.piece.values
        return {name: fill_text(value or "", values) for name, value in self.shape.est.get("annotations", {}).items()}


def chunks(pieces: Sequence[T], size_of: Callable[[T], int]) -> Iterator[Sequence[T]]:
    start = size = 0
    for i, piece in enumerate(pieces):
        if i > start and (i - start == CHUNK_POLICIES or size + size_of(piece) > CHUNK_BYTES):
            yield pieces[start:i]
            start, size = i, 0
        size += size_of(piece)
    if start < len(pieces):
        yield pieces[start:]


def text_of(pieces: Iterable[Piece]) -> str:
    return "\n".join(piece.text for piece in pieces)


def _est(document: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = msgspec.json.decode(document)
    except RecursionError:
        return deepjson.loads(document.decode())
    return found


@dataclass(frozen=True, slots=True)
class Making:
    """What becomes of policies beyond parsing, in the process that parses them."""

    schema: cedarpy.Schema | None
    """Validates each shape's first policy."""
    columns: bool
    """As in compile_image."""


def _forms(first: Sequence[First]) -> list[tuple[bool, dict[str, Any]]] | None:
    """Whether each shape is a template, and its JSON form; None when cedarpy refuses one or splits them otherwise."""
    try:
        read = cedarpy.policies_to_json_str("\n".join(shape.text for _, shape in first))
    except ValueError:
        return None
    document = _est(read.encode())
    static, templates = document["staticPolicies"], document["templates"]
    if len(static) + len(templates) != len(first):
        return None
    names = [f"policy{i}" for i in range(len(first))]
    return [(name in templates, templates[name] if name in templates else static[name]) for name in names]


def _made(first: Sequence[First], making: Making) -> bytes:
    """What was made of a chunk, as plain values for another process; empty when it cannot be parsed."""
    forms = _forms(first)
    if forms is None:
        return b""
    valid = True
    if making.schema is not None:
        valid = bool(cedarpy.validate_policies(text_of(piece for piece, _ in first), making.schema).validation_passed)
    drafts: dict[Key, tuple[Any, ...]] = {}
    rows = []
    for (_, shape), (template, est) in zip(first, forms, strict=True):
        conditions = est.pop("conditions")
        draft = None if shape.tail is None else drafts.get(shape.tail)
        if draft is None:
            draft = draft_of(conditions, columns=making.columns).packed()
            if shape.tail is not None:
                drafts[shape.tail] = draft
        rows.append((template, est, draft))
    return marshal.dumps((valid, rows))


def first_refused(pieces: Sequence[Piece], check: Callable[[str], object]) -> tuple[Piece, ValueError] | None:
    """The first piece whose text alone makes `check` raise ValueError."""
    for piece in pieces:
        try:
            check(piece.text)
        except ValueError as error:
            return piece, error
    return None


def _refusal(first: Sequence[First]) -> PolicyError:
    """Names the policy for which a chunk was refused."""
    pieces = [piece for piece, _ in first]
    found = first_refused(pieces, cedarpy.policies_to_json_str)
    if found is not None:
        return PolicyError(f"{found[0].title} cannot be parsed: {found[1]}")
    return PolicyError(f"policies from {pieces[0].where} on are split in another way than Cedar reads them")


def split_all(sources: Sequence[PolicyText], limits: PolicyLimits, verbatim: Iterable[str] = ()) -> list[Piece]:
    """The policies of all texts, in order, after every cap has held. `verbatim` is as in Shapes."""
    shapes = Shapes(verbatim)
    pieces: list[Piece] = []
    size = 0
    for source in sources:
        pieces += split(source, limits, shapes)
        size += len(source.text.encode())
        if size > limits.text_bytes_max:
            raise PolicyError(f"policies up to `{source.name}` have more than {limits.text_bytes_max} bytes together")
    if len(pieces) > limits.policies_max:
        raise PolicyError(f"there are {len(pieces)} policies; at most {limits.policies_max} are compiled")
    return pieces


def _first_of_shapes(pieces: Sequence[Piece]) -> tuple[list[Shape], list[First]]:
    """Each policy's shape, and each shape with its first policy, in order."""
    shapes = [piece.shape or Shape(piece.text) for piece in pieces]
    first: dict[int, First] = {}
    for piece, shape in zip(pieces, shapes, strict=True):
        first.setdefault(id(shape), (piece, shape))
    return shapes, list(first.values())


def _chunks(first: Sequence[First]) -> list[Sequence[First]]:
    return list(chunks(first, lambda pair: len(pair[1].text)))


def parse(pieces: Sequence[Piece]) -> list[Parsed]:
    """Each shape parsed by cedarpy once. PolicyError names the first policy refused, its place and the cause."""
    shapes, first = _first_of_shapes(pieces)
    for chunk in _chunks(first):
        forms = _forms(chunk)
        if forms is None:
            raise _refusal(chunk)
        for (_, shape), (template, est) in zip(chunk, forms, strict=True):
            shape.template, shape.est = template, est
    return [Parsed(piece, shape, i) for i, (piece, shape) in enumerate(zip(pieces, shapes, strict=True))]


def make(
    pieces: Sequence[Piece], making: Making, processes: int = 1, progress: Callable[[str], object] = unheard
) -> tuple[list[Parsed], Sequence[Piece]]:
    """Policies whose shapes have drafts, and the first chunk that the schema does not allow, empty for none.

    Each shape is parsed, validated and compiled once, by whichever process is free. PolicyError names the first policy
    that cannot be parsed.
    """
    shapes, first = _first_of_shapes(pieces)
    drafts: dict[Key, Draft] = {}
    invalid: Sequence[Piece] = ()
    done = 0
    parts = _chunks(first)
    for part, made in zip(parts, in_order(lambda chunk: _made(chunk, making), parts, processes), strict=True):
        if not made:
            raise _refusal(part)
        valid, rows = marshal.loads(made)
        if not valid and not invalid:
            invalid = [piece for piece, _ in part]
        for (_, shape), (template, est, packed) in zip(part, rows, strict=True):
            shape.template, shape.est = template, est
            draft = None if shape.tail is None else drafts.get(shape.tail)
            shape.draft = draft or Draft.unpacked(packed)
            if shape.tail is not None:
                drafts[shape.tail] = shape.draft
        done += len(part)
        progress(f"parsing {done} of {len(first)} kinds of policies")
    return [Parsed(piece, shape, i) for i, (piece, shape) in enumerate(zip(pieces, shapes, strict=True))], invalid
