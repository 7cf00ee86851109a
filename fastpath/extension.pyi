"""Cedar's extension types; Python sees the parsers."""

from typing import Literal, overload

@overload
def parse(fn: Literal["ip"], text: str) -> tuple[bool, int, bytes]: ...
@overload
def parse(fn: str, text: str) -> int | tuple[bool, int, bytes]: ...
