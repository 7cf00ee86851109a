"""`remit policy ...`: work on policies without a running sidecar."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import IO, Any

import click

from sidecar.cli.in_force import compiling, in_force, section_of
from sidecar.cli.output import (
    EXIT_NO,
    INPUT_BYTES_MAX,
    Commands,
    Failure,
    config_option,
    console,
    input_text,
    mark,
    table,
)
from sidecar.errors import PolicyError

Decorator = Callable[..., Any]


@click.group(cls=Commands)
def policy() -> None:
    """Check, format, test, explain, publish and edit Cedar policies."""


def source_options(function: Decorator) -> Decorator:
    """What names a policy set: PATHS with --schema, --entities and --links, or --config."""
    for option in (
        click.option(
            "--config", "config_file", metavar="FILE", type=click.Path(), help="Take the set from its `policy`."
        ),
        click.option("--links", type=click.Path(), default="", help="Template links (JSON lines)."),
        click.option("--entities", type=click.Path(), default="", help="Entities (Cedar JSON)."),
        click.option("--schema", type=click.Path(), default="", help="Cedar schema (text)."),
    ):
        function = option(function)
    return function


def source_of(paths: tuple[str, ...], schema: str, entities: str, links: str, config_file: str | None) -> Any:
    """The PolicySource that the options name.

    One folder is taken with the schema, entities and links that lie in it. Raises click.UsageError for contradictions.
    """
    from sidecar.config_file import load
    from sidecar.policy.source import PolicySource, SourceFiles

    if config_file:
        if paths or schema or entities or links:
            raise click.UsageError("--config names the whole set; give no paths beside it")
        return PolicySource(load(config_file).policy)
    if not paths:
        raise click.UsageError("name a policy folder or files, or --config FILE")
    folder = pathlib.Path(paths[0])
    if len(paths) == 1 and folder.is_dir():
        found = SourceFiles.in_folder(folder)
        return PolicySource(
            SourceFiles(found.policies, schema or found.schema, entities or found.entities, links or found.links)
        )
    return PolicySource(SourceFiles(paths, schema, entities, links))


@policy.command()
@click.argument("paths", nargs=-1, type=click.Path())
@source_options
def check(paths: tuple[str, ...], schema: str, entities: str, links: str, config_file: str | None) -> None:
    """Parse, validate and compile a policy set, and say what it reads.

    Nothing is published. The compiler runs as a process of its own, so that no input can hurt this one.

    \b
    Example:
      remit policy check policies/
      remit policy check agents.cedar --schema agents.cedarschema --entities entities.json
    """
    from sidecar.policy.publish import compile_in_child

    source = source_of(paths, schema, entities, links, config_file)
    result = compile_in_child(source.read(), allow_empty=source.paths.allow_empty, compile_s=_compile_s(source))
    report = result.report
    if report is None:
        raise PolicyError("the compiler gave no report; try again")
    rows = [
        ("policies", f"{report.policies}, of {report.templates} templates and {report.links} links"),
        ("entities", report.entities),
        ("reads of live state", ", ".join(report.columns) or "nothing"),
        ("reads of the call", ", ".join(report.extras) or "nothing"),
        ("digest", result.digest),
    ]
    table(str(source), ("what", "found"), rows)
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)


def _compile_s(source: Any) -> int:
    from sidecar.policy.worker import COMPILE_S

    return int(getattr(source.paths, "compile_s", COMPILE_S))


@policy.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option("--check", "only_check", is_flag=True, help="Change nothing; exit 1 when a file is not formatted.")
@click.option("--width", default=100, show_default=True, help="Longest line, in columns.")
def fmt(paths: tuple[str, ...], only_check: bool, width: int) -> None:
    """Format Cedar files in place, comments included.

    \b
    Example:
      remit policy fmt policies/
      remit policy fmt --check policies/*.cedar
    """
    import cedarpy

    from sidecar.policy.lexer import PolicyText
    from sidecar.policy.limits import DEFAULT_LIMITS
    from sidecar.policy.parse import first_refused, split_all
    from sidecar.policy.source import policy_files

    changed = []
    for name in policy_files(paths):
        text = input_text(name)
        # The parser dies of deep nesting, so the text is measured first.
        pieces = split_all([PolicyText(name, text)], DEFAULT_LIMITS)
        try:
            formatted = cedarpy.format_policies(text, line_width=width)
        except ValueError as error:
            # The parser names no place; our lexer knows where each policy begins.
            found = first_refused(pieces, cedarpy.policies_to_json_str)
            what, cause = (found[0].title, found[1]) if found else (f"`{name}`", error)
            raise PolicyError(f"{what} cannot be parsed: {' '.join(str(cause).split())[:300]}") from None
        formatted = formatted.rstrip("\n") + "\n"
        if formatted != text:
            changed.append(name)
            if not only_check:
                _replace(pathlib.Path(name), formatted)
    for name in changed:
        click.echo(f"{'not formatted' if only_check else 'formatted'}: {name}")
    if changed and only_check:
        raise Failure(f"{len(changed)} files are not formatted; run remit policy fmt on them", EXIT_NO)


def _replace(path: pathlib.Path, text: str) -> None:
    """Write the file anew or leave it as it is: a full disk must not cost a policy."""
    target = path.resolve()
    aside = target.with_name(f"{target.name}.new")
    try:
        aside.write_text(text, encoding="utf-8")
        shutil.copymode(target, aside)
        aside.rename(target)
    finally:
        aside.unlink(missing_ok=True)


@policy.command()
@click.argument("tests", nargs=-1, required=True, type=click.Path())
@click.option("--policies", "paths", multiple=True, type=click.Path(), help="Policy folder or file; may be repeated.")
@source_options
@click.option("--evaluation", type=click.Choice(["strict", "cedar"]), default="strict", show_default=True)
@click.option("--junit", type=click.Path(dir_okay=False, path_type=pathlib.Path), help="Write JUnit XML here as well.")
def test(
    tests: tuple[str, ...], paths: tuple[str, ...], evaluation: str, junit: pathlib.Path | None, **source: Any
) -> None:
    """Run policy tests: YAML files of questions with the decision that is expected.

    Prints a table and exits 1 on a miss. The questions go through the evaluator that decides real calls.

    \b
    Example:
      remit policy test tests/*.yaml --policies policies/ --junit report.xml
    \b
    A test:
      tests:
        - name: a reader may search
          principal: Agent::"spiffe://corp.example/agents/reader"
          action: Action::"read"
          resource: Tool::"docs/search"
          context: {call: {data_level: 1}}
          expect: ALLOW
          policies: [base]
    """
    from fastpath.evaluator import Evaluator
    from sidecar.policy.results import as_junit, as_table
    from sidecar.policy.testing import load_tests, run_tests

    loaded = [(name, load_tests(name)) for name in tests]
    with _generation(source_of(paths, **source), strict=evaluation == "strict") as generation:
        evaluator = Evaluator(generation)
        outcomes = [outcome for name, some in loaded for outcome in run_tests(evaluator, some, name)]
    console().print(as_table(outcomes))
    if junit is not None:
        junit.write_bytes(as_junit(outcomes))
    missed = sum(not outcome.passed for outcome in outcomes)
    if missed:
        raise Failure(f"{missed} of {len(outcomes)} tests missed", EXIT_NO)


def _generation(source: Any, *, strict: bool) -> Any:
    """The set compiled and opened, without a store; the caller closes it."""
    import tempfile

    from fastpath.table import Generation
    from sidecar.policy.publish import compile_in_child

    with tempfile.TemporaryDirectory(prefix="remit-policy-") as folder:
        output = f"{folder}/generation.mdb"
        made = compile_in_child(
            source.read(), output=output, allow_empty=source.paths.allow_empty, compile_s=_compile_s(source)
        )
        # Readable after the folder is gone: a generation keeps its file open.
        return Generation.open(
            output,
            generation=1,
            digest=made.digest,
            size=made.size,
            file_digest=made.file_digest,
            file_size=made.file_size,
            strict=strict,
        )


@policy.command()
@click.argument("paths", nargs=-1, type=click.Path())
@source_options
@click.option("--principal", required=True, metavar="UID", help='As in Agent::"spiffe://corp.example/agents/a".')
@click.option("--action", required=True, metavar="UID", help='As in Action::"read".')
@click.option("--resource", required=True, metavar="UID", help='As in Tool::"docs/search".')
@click.option("--resource-parent", default="", metavar="UID", help="Its parent, when the entities do not hold it.")
@click.option("--context", default="{}", metavar="JSON", help="Context as Cedar JSON, or @FILE.")
@click.option("--unsent", multiple=True, metavar="NAME", help="Context attribute that the caller did not send.")
def explain(
    paths: tuple[str, ...],
    schema: str,
    entities: str,
    links: str,
    config_file: str | None,
    context: str,
    unsent: tuple[str, ...],
    **uids: str,
) -> None:
    """Say why a question is decided as it is: which policies match, and which of their conditions hold.

    \b
    Example:
      remit policy explain policies/ --principal 'Agent::"spiffe://corp.example/agents/a"' \\
        --action 'Action::"read"' --resource 'Tool::"docs/search"' --context '{"call": {"data_level": 3}}'
    """
    from sidecar.policy.explain import Explainer
    from sidecar.policy.question import Question

    source = source_of(paths, schema, entities, links, config_file)
    question = Question(context=_context(context), unsent=list(unsent), **uids)
    with _generation(source, strict=getattr(source.paths, "evaluation", "strict") == "strict") as generation:
        found = Explainer(source.read(), generation).explain(question)
    _show(found)


def _context(text: str) -> dict[str, Any]:
    raw = input_text(text[1:]) if text.startswith("@") else text
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"--context is not JSON: {str(error).lower()}; give a JSON object, or @FILE") from None
    if not isinstance(parsed, dict):
        raise PolicyError("--context is not a JSON object; write {} for an empty one")
    return parsed


def _show(found: Any) -> None:
    decision = found.decision
    click.echo(f"{decision.outcome} {decision.reason}")
    for one in found.policies:
        state = "error: " + one.cause if one.satisfied is None else "satisfied" if one.satisfied else "not satisfied"
        via = f" (template {one.template})" if one.template else ""
        click.echo(f"\n{one.effect} {one.id}{via} {one.where}: {state}")
        rows = [
            (
                clause.kind,
                mark(part.value == "true", part.value),
                part.text,
                part.cause if part.reached else "not reached",
            )
            for clause in one.clauses
            for part in clause.conjuncts
        ]
        if rows:
            table("", ("", "value", "condition", ""), rows)
    if not found.policies:
        click.echo("no policy's scope matches; without a permit everything is denied")
    if found.missing:
        click.echo(f"\nnot sent, and read by these policies: {', '.join(found.missing)}")


@policy.command()
@config_option
def publish(config_file: str) -> None:
    """Compile the configured policies into the store; a running sidecar takes them with `remit reload`.

    Prints the generation, and on a terminal what is being done meanwhile. Equal content keeps its number; a mistake
    changes nothing. Edits (`remit policy put`, `remit entity put`, ..) go on standing over the files: it says how many
    there are, and which removals are forgotten because the files no longer hold what was removed.

    \b
    Example:
      remit policy publish --config remit.yaml && remit reload --config remit.yaml
    """
    from sidecar.policy.publish import GenerationStore, PolicySource

    section = section_of(config_file)
    with GenerationStore(section.store) as store, compiling(section) as work:
        in_force(store.publish_files(PolicySource(section), work))


@policy.command("generate-schema")
@click.argument("tools", type=click.File("rb"))
@click.option("--server", required=True, metavar="NAME", help="Name that `mapping.servers` gives the MCP server.")
@click.option("--base", type=click.Path(path_type=pathlib.Path), help="Schema to extend; default: our vocabulary.")
@click.option("--class", "classes", multiple=True, metavar="TOOL=CLASS", help="What a tool does; may be repeated.")
@click.option(
    "--output", type=click.Path(path_type=pathlib.Path), help="Write the schema here, not to standard output."
)
@click.option("--entities", type=click.Path(path_type=pathlib.Path), help="Write the tools as Cedar entities here.")
def generate_schema(
    tools: IO[bytes],
    server: str,
    base: pathlib.Path | None,
    classes: tuple[str, ...],
    output: pathlib.Path | None,
    entities: pathlib.Path | None,
) -> None:
    """Turn an MCP server's tool list into Cedar actions with typed arguments.

    TOOLS is the JSON of an answer to tools/list, or `-`. Each tool becomes an action under its class (read, send, ..).
    What a server says of its own tools can make them look more dangerous, never more harmless; --class is your word.

    \b
    Example:
      remit policy generate-schema tools.json --server bank --class transfer=send --output agents.cedarschema
    """
    from sidecar.policy import generate_schema as generator

    given = dict(_pair(text) for text in classes)
    made = generator.generate_schema(
        generator.read_tools(tools.read(INPUT_BYTES_MAX)),
        server,
        base=input_text(str(base)) if base else None,
        classes=given,
    )
    for warning in made.warnings:
        click.echo(f"warning: {warning}", err=True)
    if entities is not None:
        entities.write_text(json.dumps(made.entities, indent=2) + "\n", encoding="utf-8")
    if output is None:
        click.echo(made.schema, nl=False)
        return
    output.write_text(made.schema, encoding="utf-8")
    click.echo(f"{len(made.tools)} tools of {server} in {output}")


def _pair(text: str) -> tuple[str, str]:
    name, mark, value = text.rpartition("=")
    if not mark:
        raise click.UsageError(f"--class `{text}` is not TOOL=CLASS")
    return name, value
