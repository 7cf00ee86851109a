"""One generation's rule table, opened and verified."""

import os
from types import TracebackType
from typing import Final, Protocol, Self

from typing_extensions import disjoint_base

IMAGE_KEY: Final[bytes]
"""Key of the image in the main database of a generation's LMDB file."""
DELTA_KEY: Final[bytes]
"""Key of a delta in the main database of its LMDB file."""
LAYOUT: Final[dict[str, str]]
"""struct format of each structure of an image, by its name in image.pxd and value.pxd."""
SIZES: Final[dict[str, int]]
"""Bytes of each structure of an image."""

class _DeltaFile(Protocol):
    """A delta's LMDB file as a manifest describes it."""

    @property
    def path(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def file_digest(self) -> str: ...
    @property
    def file_size(self) -> int: ...

@disjoint_base
class Generation:
    @staticmethod
    def from_bytes(
        image: bytes, *, generation: int = 0, digest: str = "", strict: bool = True, delta: bytes | None = None
    ) -> Generation: ...
    @staticmethod
    def open(
        path: str | os.PathLike[str],
        *,
        generation: int,
        digest: str,
        size: int,
        file_digest: str,
        file_size: int,
        strict: bool = True,
        delta: _DeltaFile | None = None,
    ) -> Generation: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    @property
    def generation(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def base_digest(self) -> str: ...
    @property
    def strict(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    @property
    def policy_count(self) -> int: ...
    @property
    def entity_count(self) -> int: ...
    @property
    def columns_read(self) -> list[str]: ...
    @property
    def unlocked(self) -> str: ...
    @property
    def extras_read(self) -> list[str]: ...
    @property
    def policy_ids(self) -> list[str]: ...
