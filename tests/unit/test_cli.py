"""The command `remit`: help that teaches, one clear line per error, exit codes that scripts can rely on."""

import json
import pathlib
import sys

import click
import pytest
from click.testing import CliRunner, Result

from sidecar.cli import main
from sidecar.cli.output import EXIT_ERROR, EXIT_NO, EXIT_UNREACHABLE
from tests.unit.test_config import MINIMAL

GOOD = '@id("base") permit (principal, action == Action::"read", resource) when { context.call.data_level < 3 };\n'
BAD = '@id("base") permit (principal, action, resource) when { 1 + };\n'


def remit(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def commands(group: click.Group = main, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found += commands(command, (*above, name)) if isinstance(command, click.Group) else [(*above, name)]
    return found


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A policy set and a configuration."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "base.cedar").write_text(GOOD)
    (tmp_path / "remit.yaml").write_text(MINIMAL)
    return tmp_path


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_command_teaches_with_an_example(path: tuple[str, ...]) -> None:
    """--help says what the command does and shows one call of it."""
    result = remit(*path, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"remit {' '.join(path)}" in result.output


def test_the_command_set_is_complete() -> None:
    """What the README promises is there."""
    names = {" ".join(path) for path in commands()}
    promised = ["serve", "reload", "status", "collect", "envoy-config", "systemd", "doctor", "demo", "decisions tail"]
    promised += [f"policy {name}" for name in ("check", "fmt", "test", "explain", "publish", "generate-schema")]
    promised += [f"policy {name}" for name in ("put", "remove", "link", "unlink", "edits", "compact")]
    promised += ["entity put", "entity remove"]
    assert names >= set(promised)


def test_all_problems_of_a_configuration_are_listed(tmp_path: pathlib.Path) -> None:
    """One line per problem, and exit code 3."""
    file = tmp_path / "remit.yaml"
    file.write_text(f"{MINIMAL}limits: {{budget_ms: x, tempo: 9}}\n")
    result = remit("serve", "--config", str(file))
    assert result.exit_code == EXIT_ERROR
    assert "2 problems" in result.stderr
    assert "  `limits.budget_ms`: " in result.stderr
    assert "  `limits.tempo`: " in result.stderr
    assert "Traceback" not in result.output


def test_a_missing_configuration_says_what_to_do() -> None:
    """The message names the file, the cause and the option."""
    result = remit("serve", "--config", "/nonexistent/remit.yaml")
    assert result.exit_code == EXIT_ERROR
    assert "`/nonexistent/remit.yaml` cannot be read: no such file" in result.stderr
    assert "--config" in result.stderr


@pytest.mark.parametrize("command", ["reload", "status"])
def test_a_sidecar_that_does_not_run_is_said_to_be_away(command: str, folder: pathlib.Path) -> None:
    """Exit code 4: the sidecar does not answer."""
    result = remit(command, "--config", str(folder / "remit.yaml"))
    assert result.exit_code == EXIT_UNREACHABLE
    assert "does not answer" in result.stderr
    assert "remit serve" in result.stderr


def test_check_says_what_a_policy_set_reads(folder: pathlib.Path) -> None:
    """The columns are what the context budget and the Envoy configuration come from."""
    result = remit("policy", "check", str(folder / "policies"))
    assert result.exit_code == 0, result.output
    assert "call.data_level" in result.output


def test_a_policy_that_does_not_parse_is_named_with_its_place(folder: pathlib.Path) -> None:
    """Exit code 3, and the file with line and column."""
    (folder / "policies" / "base.cedar").write_text(GOOD + BAD)
    result = remit("policy", "check", str(folder / "policies"))
    assert result.exit_code == EXIT_ERROR
    assert "base.cedar:2" in result.stderr


def test_fmt_formats_in_place_and_check_only_looks(folder: pathlib.Path) -> None:
    """--check exits 1 and changes nothing; without it the second run has nothing to do."""
    file = folder / "policies" / "base.cedar"
    assert remit("policy", "fmt", "--check", str(file)).exit_code == EXIT_NO
    assert file.read_text() == GOOD
    assert remit("policy", "fmt", str(file)).exit_code == 0
    formatted = file.read_text()
    assert formatted != GOOD
    assert remit("policy", "fmt", "--check", str(file)).exit_code == 0
    assert file.read_text() == formatted


def test_fmt_names_the_place_of_what_it_cannot_read(folder: pathlib.Path) -> None:
    """Exit code 3, the policy, its file with line and column; the file stays as it is."""
    file = folder / "policies" / "base.cedar"
    file.write_text(GOOD + "\n" + BAD.replace("base", "second"))
    result = remit("policy", "fmt", str(file))
    assert result.exit_code == EXIT_ERROR
    assert "policy `second`" in result.stderr
    assert "base.cedar:3:1" in result.stderr
    assert file.read_text().startswith(GOOD)


def test_policy_tests_print_a_table_write_junit_and_exit_1_on_a_miss(folder: pathlib.Path) -> None:
    """A miss is named; a file that passes exits 0."""
    question = 'principal: "Agent::\\"a\\"", action: "Action::\\"read\\"", resource: "Tool::\\"t\\""'
    tests = folder / "tests.yaml"
    hit = f"  - {{name: low, {question}, expect: ALLOW, policies: [base]}}\n"
    tests.write_text(f"tests:\n{hit}")
    assert remit("policy", "test", str(tests), "--policies", str(folder / "policies")).exit_code == 0
    tests.write_text(f"tests:\n{hit}  - {{name: wrong, {question}, expect: DENY}}\n")
    junit = folder / "junit.xml"
    result = remit("policy", "test", str(tests), "--policies", str(folder / "policies"), "--junit", str(junit))
    assert result.exit_code == EXIT_NO
    assert "1 of 2 tests missed" in result.stderr
    assert 'failures="1"' in junit.read_text()


def test_explain_shows_the_condition_that_failed(folder: pathlib.Path) -> None:
    """The policy, its condition and its value, for a question that is denied."""
    result = remit(
        *("policy", "explain", str(folder / "policies")),
        *("--principal", 'Agent::"a"', "--action", 'Action::"read"', "--resource", 'Tool::"t"'),
        *("--context", '{"call": {"data_level": 4}}'),
    )
    assert result.exit_code == 0, result.output
    assert result.output.startswith("DENY ")
    assert "permit base" in result.output
    assert "data_level" in result.output
    assert "false" in result.output


def test_publish_prints_the_generation(folder: pathlib.Path) -> None:
    """Equal content keeps its number; changed content gets the next; a mistake changes nothing."""
    arguments = ("policy", "publish", "--config", str(folder / "remit.yaml"))
    assert remit(*arguments).output.startswith("generation 1 sha256:")
    assert remit(*arguments).output.startswith("generation 1 ")
    (folder / "policies" / "base.cedar").write_text(BAD)
    assert remit(*arguments).exit_code == EXIT_ERROR
    (folder / "policies" / "base.cedar").write_text(GOOD.replace("3", "2"))
    assert remit(*arguments).output.startswith("generation 2 ")


def test_envoy_config_prints_what_the_published_rules_need(folder: pathlib.Path) -> None:
    """Without a running sidecar the store says what is read; the SPIFFE ID must then be named."""
    config = folder / "remit.yaml"
    config.write_text(
        MINIMAL.replace("  agents:", "  ext_authz: {address: '127.0.0.1:9191'}\n  agents:")
        + 'peps: ["spiffe://corp.example/envoy"]\n'
    )
    remit("policy", "publish", "--config", str(config))
    arguments = ("envoy-config", "--config", str(config))
    assert "--sidecar-id" in remit(*arguments).stderr
    for wrong in ("corp.example/sidecar", 'spiffe://corp.example/"x', "spiffe://corp.example"):
        refused = remit(*arguments, "--sidecar-id", wrong)
        assert (refused.exit_code, f"`{wrong}`" in refused.stderr) == (EXIT_ERROR, True), refused.output
    result = remit(*arguments, "--sidecar-id", "spiffe://corp.example/sidecar")
    assert result.exit_code == 0, result.output
    assert "failure_mode_allow: false" in result.output
    assert "with_request_body" not in result.output


def test_doctor_says_what_is_wrong_and_what_to_do(folder: pathlib.Path) -> None:
    """Exit code 1; each finding has its advice; an unsafe Envoy is found (EX-20)."""
    envoy = folder / "envoy.yaml"
    envoy.write_text('x: {"@type": x.ext_authz.v3.ExtAuthz, failure_mode_allow: true, encode_raw_headers: true}\n')
    result = remit("doctor", "--config", str(folder / "remit.yaml"), "--envoy-config", str(envoy))
    assert result.exit_code == EXIT_NO
    assert "remit serve --config" in result.output
    assert "start the SPIFFE agent" in result.output
    assert "failure_mode_allow: true" in result.output
    assert "workload api" in result.stderr
    assert "the Envoy configuration" in result.stderr


def test_print_config_names_every_field() -> None:
    """It needs no configuration file, and is the reference of the README."""
    result = remit("doctor", "--print-config")
    assert result.exit_code == 0
    for field in ("budget_ms:", "on_full:", "evaluation:", "workload_api:", "trust_domains:"):
        assert field in result.output


def test_generate_schema_turns_a_tool_list_into_a_schema_that_publishes(folder: pathlib.Path) -> None:
    """The tool list of an MCP server, a class from the operator, and a set that compiles with the result."""
    tools = folder / "tools.json"
    number = {"type": "object", "properties": {"amount": {"type": "integer"}}, "required": ["amount"]}
    tools.write_text(json.dumps({"tools": [{"name": "transfer", "description": "moves money", "inputSchema": number}]}))
    schema, entities = folder / "policies" / "agents.cedarschema", folder / "policies" / "entities.json"
    arguments = ("policy", "generate-schema", str(tools), "--server", "bank", "--class", "transfer=send")
    result = remit(*arguments, "--output", str(schema), "--entities", str(entities))
    assert result.exit_code == 0, result.output
    assert "1 tools of bank" in result.output
    (folder / "policies" / "base.cedar").write_text(
        '@id("small") permit (principal, action == Action::"bank/transfer", resource)'
        " when { context.input.amount < 100 };"
    )
    checked = remit("policy", "check", str(folder / "policies"))
    assert checked.exit_code == 0, checked.output
    assert "input" in checked.output
    assert remit(*arguments[:-1], "transfer").exit_code == 2


def test_the_demo_names_the_packages_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sidecar installed without the extra `demo` says so in one line, not in a traceback."""
    # The command hides its module of the same name from attribute access.
    monkeypatch.setattr(sys.modules["sidecar.cli.demo"], "NEEDED", ("json", "no_such_package"))
    answer = remit("demo")
    assert answer.exit_code == EXIT_ERROR
    assert "the demo needs no_such_package" in answer.output


def test_edits_by_command_stand_over_the_files(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """put, link, unlink, remove, entity put and remove: each says what it did and which generation holds it."""
    monkeypatch.setenv("REMIT_CONFIG", str(folder / "remit.yaml"))
    share = '@id("share") permit (principal == ?principal, action, resource == ?resource);\n'
    (folder / "policies" / "share.cedar").write_text(share)
    slots = ("--principal", 'Agent::"a"', "--resource", 'Tool::"t"')
    (folder / "entity.json").write_text('{"uid": {"type": "Agent", "id": "a"}, "attrs": {}, "parents": []}')
    steps = [
        (("policy", "publish"), ""),
        (("policy", "put", "-"), "put policy `freeze`\n"),
        (("policy", "link", "--template", "share", "--id", "s-1", *slots), "put link `s-1`\n"),
        (("policy", "remove", "base"), "removed policy `base`\n"),
        (("policy", "unlink", "s-1"), "removed link `s-1`\n"),
        (("entity", "put", str(folder / "entity.json")), 'put entity `Agent::"a"`\n'),
        (("entity", "remove", 'Agent::"a"'), 'removed entity `Agent::"a"`\n'),
    ]
    for number, (arguments, said) in enumerate(steps, 1):
        result = CliRunner().invoke(main, arguments, input='@id("freeze") forbid (principal, action, resource);')
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith(f"{said}generation {number} sha256:"), result.stdout
    lines = [json.loads(line) for line in remit("policy", "edits", "--json").stdout.splitlines()]
    assert [(line["id"], bool(line["text"]), bool(line["by"])) for line in lines] == [
        ("base", False, True),
        ("freeze", True, True),
    ]
    assert "2 edits stand over the files" in remit("policy", "edits").stdout
    assert "2 edits stand over the files" in remit("policy", "compact").stdout
    dropped = remit("policy", "edits", "--drop")
    assert (dropped.exit_code, "stand" in dropped.stdout) == (0, False)
    assert "0 edits stand over the files" in remit("policy", "edits").stdout


def test_a_refused_edit_names_what_and_why(folder: pathlib.Path) -> None:
    """Exit code 3 and one clear line."""
    config = str(folder / "remit.yaml")
    assert remit("policy", "publish", "--config", config).exit_code == 0
    result = remit("policy", "remove", "nope", "--config", config)
    assert (result.exit_code, result.stdout) == (EXIT_ERROR, "")
    assert "there is no policy, template or link `nope` to remove" in result.stderr
    result = remit("entity", "remove", "nope", "--config", config)
    assert 'an entity like Agent::"a" is expected' in result.stderr
