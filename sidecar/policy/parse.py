"""Cedar policy text to parsed policies: split by our lexer, parsed by cedarpy, chunk by chunk."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cedarpy
import msgspec

from sidecar.errors import PolicyError
from sidecar.policy import deepjson
from sidecar.policy.cores import in_order
from sidecar.policy.lexer import Piece, PolicyText, split
from sidecar.policy.limits import PolicyLimits
from sidecar.policy.shapes import Shape, Shapes, fill_est, fill_text

T = TypeVar("T")

# A chunk bounds the memory of one call to cedarpy and the search for the policy that it refuses.
CHUNK_POLICIES = 512
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


def _read(first: Sequence[tuple[Piece, Shape]]) -> bytes:
    """The JSON form of some shapes; empty when cedarpy refuses one."""
    try:
        return cedarpy.policies_to_json_str("\n".join(shape.text for _, shape in first)).encode()
    except ValueError:
        return b""


def first_refused(pieces: Sequence[Piece], check: Callable[[str], object]) -> tuple[Piece, ValueError] | None:
    """The first piece whose text alone makes `check` raise ValueError."""
    for piece in pieces:
        try:
            check(piece.text)
        except ValueError as error:
            return piece, error
    return None


def _parse_chunk(first: Sequence[tuple[Piece, Shape]], read: bytes) -> None:
    """Take the JSON form of shapes, each given with its first policy, which is named when it is refused."""
    pieces = [piece for piece, _ in first]
    if not read:
        found = first_refused(pieces, cedarpy.policies_to_json_str)
        if found is None:
            raise PolicyError(f"policies from {pieces[0].where} on cannot be parsed")
        raise PolicyError(f"{found[0].title} cannot be parsed: {found[1]}") from None
    document = _est(read)
    static, templates = document["staticPolicies"], document["templates"]
    if len(static) + len(templates) != len(pieces):
        raise PolicyError(f"policies from {pieces[0].where} on are split in another way than Cedar reads them")
    for i, (_, shape) in enumerate(first):
        name = f"policy{i}"
        shape.template = name in templates
        shape.est = templates[name] if shape.template else static[name]


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


def first_of_shapes(pieces: Iterable[Piece]) -> list[Piece]:
    """The first policy of each shape, in order."""
    seen: set[int] = set()
    first = []
    for piece in pieces:
        if piece.shape is None:
            first.append(piece)
        elif id(piece.shape) not in seen:
            seen.add(id(piece.shape))
            first.append(piece)
    return first


def parse(pieces: Sequence[Piece], processes: int = 1, progress: Callable[[str], object] = unheard) -> list[Parsed]:
    """Each shape parsed by cedarpy once. PolicyError names the first policy refused, its place and the cause."""
    shapes = [piece.shape or Shape(piece.text) for piece in pieces]
    first: dict[int, tuple[Piece, Shape]] = {}
    for piece, shape in zip(pieces, shapes, strict=True):
        if not shape.est:
            first.setdefault(id(shape), (piece, shape))
    done = 0
    parts = list(chunks(list(first.values()), lambda pair: len(pair[1].text)))
    for part, read in zip(parts, in_order(_read, parts, processes), strict=True):
        _parse_chunk(part, read)
        done += len(part)
        progress(f"parsing {done} of {len(first)} kinds of policies")
    return [Parsed(piece, shape, i) for i, (piece, shape) in enumerate(zip(pieces, shapes, strict=True))]
