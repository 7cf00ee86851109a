"""What every command that changes the set of policies shares: how it compiles, and what it says of the outcome."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click


@contextlib.contextmanager
def compiling(section: Any) -> Iterator[Any]:
    """How to compile by the configuration's section `policy`; on a terminal people see what is being done."""
    from sidecar.policy.publish import Work

    if not sys.stderr.isatty():
        yield Work(section.compile_s)
        return
    from rich.console import Console

    with Console(stderr=True).status("reading") as status:
        yield Work(section.compile_s, progress=status.update)


def section_of(config_file: str) -> Any:
    """The section `policy` of a configuration."""
    from sidecar.config_file import load

    return load(config_file).policy


def say_unneeded(titles: Iterable[str]) -> None:
    """Name what edits removed that no file holds any more."""
    for title in titles:
        click.echo(f"no longer needed: the removal of {title}, which the files do not hold")


def say_generation(number: int, digest: str, count: int) -> None:
    """Say which generation is in force, and over how many edits."""
    click.echo(f"generation {number} {digest}{f'; {standing(count)}' if count else ''}")


def in_force(done: Any) -> None:
    """Say which generation is in force, and which edits need not stand any more."""
    say_unneeded(done.forgotten)
    say_generation(done.manifest.generation, done.manifest.digest_in_force, done.standing)


def standing(count: int) -> str:
    """`2 edits stand over the files`."""
    return f"{count} edit{' stands' if count == 1 else 's stand'} over the files"
