"""YAML from people: no duplicate keys, no aliases or few (lines of them can be gigabytes), and one kind of error."""

from typing import Any

import yaml

VALUES_MAX = 1_000_000
"""Values of one document after its aliases are written out."""


class BadYaml(Exception):
    """A text that is no YAML we take; the text says where and why."""


class _Aliased(yaml.SafeLoader):
    """YAML that refuses what could be read two ways."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise BadYaml(f"line {key.start_mark.line + 1}: a key must be plain text")
            if key.value in seen:
                raise BadYaml(f"line {key.start_mark.line + 1}: duplicate key `{key.value}`; keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError):
            # PyYAML checks the shape of numbers and dates by a pattern, and lets what is behind it raise.
            raise BadYaml(
                f"line {node.start_mark.line + 1}: the value is no {node.tag.rpartition(':')[2]}; put it into quotes"
            ) from None


class _Plain(_Aliased):
    """YAML that says everything in its place."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise BadYaml(f"line {mark.line + 1}: aliases are not supported; write the value out")
        return super().compose_node(parent, index)


def load(text: str, *, aliases: bool = False) -> Any:
    """The one document in `text`. BadYaml when there is none, and for aliases unless they are asked for."""
    try:
        found = yaml.load(text, _Aliased if aliases else _Plain)
        if aliases:
            _count(found, {})
        return found
    except yaml.YAMLError as error:
        raise BadYaml(" ".join(str(error).split())[:300]) from None
    except RecursionError:
        raise BadYaml("it is nested too deeply") from None


def _count(value: Any, counted: dict[int, int]) -> int:
    """Values in `value` with every alias written out, each part looked at once. BadYaml beyond VALUES_MAX."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in counted:
        # An alias of what it stands in has no end; until the parts are counted it has this many.
        counted[id(value)] = VALUES_MAX
        parts = value.values() if isinstance(value, dict) else value
        counted[id(value)] = 1 + sum(_count(part, counted) for part in parts)
    if counted[id(value)] > VALUES_MAX:
        raise BadYaml(f"its aliases make more than {VALUES_MAX} values of it")
    return counted[id(value)]
