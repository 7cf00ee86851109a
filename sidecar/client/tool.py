"""A function as a tool: its arguments are those of the question."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

Destination = str | Callable[[Mapping[str, Any]], str]


def plain(value: Any) -> Any:
    """A value as JSON has it; whatever has no such form is its text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value)


class Tool:
    """What a decorated function asks before each of its calls."""

    def __init__(
        self, function: Callable[..., Any], name: str, action: str, destination: Destination, level: int
    ) -> None:
        self.name = name
        self.action = action
        self.level = level
        self._destination = destination
        self._signature = inspect.signature(function)

    def question(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments of the question about a call with these arguments. TypeError when they do not fit."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {name: plain(value) for name, value in bound.arguments.items() if name != "self"}
        where = self._destination(arguments) if callable(self._destination) else self._destination
        return {"destination": where, "arguments": arguments, "data_level": self.level}
