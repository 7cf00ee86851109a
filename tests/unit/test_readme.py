"""What the README tells a newcomer to type is there to be typed."""

import itertools
import json
import re
import shlex

import click
import pytest
import yaml

from sidecar.cli import main
from tests.fix_faults import ROOT

README = (ROOT / "README.md").read_text()
EXAMPLE = ROOT / "examples" / "agents"
KNOWN = {
    (row["uid"]["type"], row["uid"]["id"]) for row in json.loads((EXAMPLE / "entities.json").read_text())
}  # fmt: skip
FLAGS = {"--agent": "Agent", "--owner": "Person", "--dest": "Destination", "--tool": "Tool"}


def commands() -> list[list[str]]:
    """Every command behind a prompt of the README, its words; lines that go on are one."""
    text = README.replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in re.findall(r"^\$ remit (.*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[:2]))
def test_a_command_of_the_readme_is_one(words: list[str]) -> None:
    """Every command parses with every option: nothing is asked of a sidecar."""
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, name
        command, context = found, click.Context(found, parent=context, info_name=name)
    command.make_context(context.info_name, list(words))


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[:2]))
def test_what_a_command_of_the_readme_names_is_in_the_example(words: list[str]) -> None:
    """An agent, owner, tool or destination that the policies do not know would be denied for that alone."""
    for flag, name in itertools.pairwise(words):
        if flag in FLAGS and not name.endswith("*"):
            assert (FLAGS[flag], name) in KNOWN


def test_the_servers_and_agents_of_the_readme_are_in_the_example() -> None:
    text = re.search(r"```yaml\n(   identity:.*?)```", README, re.DOTALL)
    assert text is not None
    section = yaml.safe_load(text[1])
    assert {("Destination", one["host"]) for one in section["mapping"]["servers"]} <= KNOWN
    assert {("Server", one["name"]) for one in section["mapping"]["servers"]} <= KNOWN
    assert {("Agent", one["spiffe_id"]) for one in section["listeners"]["agents"]} <= KNOWN
