"""What all commands share: exit codes, how an error looks, tables, and where the configuration is found."""

import os
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import click
import rich.box
import rich.console
import rich.table
import rich.text

from sidecar.errors import ConfigError, SidecarError
from sidecar.files import UnusableFile, read_text, shown
from sidecar.logs import redact

EXIT_NO = 1  # the command worked and the answer is no: a test missed, a check found problems
EXIT_ERROR = 3  # configuration, policy or environment cannot be used (2 is click's: wrong usage)
EXIT_UNREACHABLE = 4  # the sidecar or collector does not answer

INPUT_BYTES_MAX = 64 << 20

PIPE_COLUMNS = 160  # a pipe has no width; tables are made for a wide one

CONFIG_VARIABLE = "REMIT_CONFIG"
CONFIG_DEFAULT = "remit.yaml"


class Failure(click.ClickException):
    """One clear line on standard error, further causes indented below it, and an exit code."""

    def __init__(self, message: str, exit_code: int = EXIT_ERROR, more: Iterable[str] = ()) -> None:
        super().__init__(message)
        setattr(self, "exit_code", exit_code)  # noqa: B010  click declares it for the class
        self.more = tuple(more)

    def show(self, file: Any = None) -> None:  # noqa: ARG002  click's signature
        click.echo(f"remit: {plain(self.message)}", err=True)
        for line in self.more:
            click.echo(f"  {plain(line)}", err=True)


class Commands(click.Group):
    """A group whose commands may raise SidecarError."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            problems = error.problems
            if len(problems) == 1:
                raise Failure(str(error)) from error
            raise Failure(f"the configuration has {len(problems)} problems:", more=problems) from error
        except SidecarError as error:
            raise Failure(str(error)) from error
        except BrokenPipeError:
            raise  # whoever read our output has left, which click ends quietly
        except OSError as error:
            if not error.filename:
                raise
            cause = (error.strerror or str(error)).lower()
            raise Failure(f"`{error.filename}` cannot be used: {cause}; name another place") from error


def plain(text: object) -> str:
    """Text that is safe on a terminal: control characters escaped, credentials removed."""
    return "\n".join(str(redact(line)) for line in str(text).split("\n"))


def console() -> rich.console.Console:
    """Where tables go; plain text when it is not a terminal, wide unless $COLUMNS says how wide."""
    made = rich.console.Console(highlight=False, soft_wrap=True)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PIPE_COLUMNS
    return made


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print one table; cells are data, never markup."""
    made = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, rich.text.Text) else rich.text.Text(plain(cell)) for cell in row))
    console().print(made)


def mark(good: bool, text: str = "") -> rich.text.Text:
    """`ok` in green or `no` in red, or `text` in that colour."""
    return rich.text.Text(text or ("ok" if good else "no"), style="green" if good else "bold red")


def config_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--config FILE, else $REMIT_CONFIG, else ./remit.yaml."""
    return click.option(
        "--config",
        "config_file",
        metavar="FILE",
        type=click.Path(),
        envvar=CONFIG_VARIABLE,
        default=CONFIG_DEFAULT,
        show_default=True,
        help=f"Configuration of the sidecar [env: {CONFIG_VARIABLE}].",
    )(function)


def input_text(path: str, bytes_max: int = INPUT_BYTES_MAX) -> str:
    """The text of a file named on the command line; ends the command when it cannot be used."""
    try:
        return read_text(path, bytes_max)
    except UnusableFile as error:
        raise Failure(f"`{shown(path)}` {error}") from None


def unreachable(what: str, path: str, cause: str) -> NoReturn:
    """End the command: nothing answers there."""
    raise Failure(
        f"{what} at `{path}` does not answer: {cause}; start it with remit serve --config FILE", EXIT_UNREACHABLE
    )
