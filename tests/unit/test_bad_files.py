"""What operators name can be anything: each kind of bad file is one clear line, and never a hang or a traceback."""

import os
import pathlib
import shutil

import pytest
from click.testing import CliRunner, Result

from sidecar import config_file, yaml_text
from sidecar.cli import main
from sidecar.envoy_config import warnings
from sidecar.errors import ConfigError, PolicyError
from sidecar.files import UnusableFile, read_text
from sidecar.policy.source import PolicySource, SourceFiles
from tests.unit.test_config import MINIMAL

GOOD = '@id("a") permit (principal, action, resource);\n'


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder, which is where we are, with a good policy, a pipe, a loop of links and a file that is not UTF-8."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.cedar").write_text(GOOD)
    (tmp_path / "latin").write_bytes(b"a\n\xff")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def remit(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


BAD = {
    "absent": "`absent` cannot be read: no such file or directory",
    "folder": "`folder` cannot be read: is a directory",
    "pipe": "`pipe` is not a regular file",
    "/dev/zero": "`/dev/zero` is not a regular file",
    "loop": "`loop` cannot be read: too many levels of symbolic links",
    "latin": "`latin` is not UTF-8 (line 2, byte 2)",
}
READERS = {
    "configuration": ("serve", "--config", "?"),
    "doctor": ("doctor", "--config", "?"),
    "schema": ("policy", "check", "good.cedar", "--schema", "?"),
    "entities": ("policy", "check", "good.cedar", "--entities", "?"),
    "links": ("policy", "check", "good.cedar", "--links", "?"),
    "tests": ("policy", "test", "?", "--policies", "good.cedar"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.usefixtures("folder")
def test_a_file_that_cannot_be_used_is_named_with_its_cause(reader: str, bad: str) -> None:
    """A pipe would keep a reload waiting for ever; a device never ends."""
    found = remit(*(bad if one == "?" else one for one in READERS[reader]))
    assert (found.exit_code, BAD[bad] in found.output) == (3, True), found.output


@pytest.mark.parametrize("bad", ["absent", "pipe", "/dev/zero", "loop", "latin"])
@pytest.mark.usefixtures("folder")
def test_a_policy_file_that_cannot_be_used_is_named_with_its_cause(bad: str) -> None:
    """A folder is read by its *.cedar; everything else is a file."""
    for command in (("check",), ("fmt",), ("fmt", "--check")):
        found = remit("policy", *command, bad)
        assert (found.exit_code, BAD[bad] in found.output) == (3, True), found.output


def test_a_file_name_that_is_no_text_is_refused(folder: pathlib.Path) -> None:
    """Names stand in errors, logs and answers, which are text."""
    (folder / "folder" / os.fsdecode(b"x\xff.cedar")).write_text(GOOD)
    with pytest.raises(PolicyError, match=r"`folder/x\\udcff.cedar` has a name that is not UTF-8 text; rename it"):
        PolicySource(SourceFiles(["folder"])).read()


@pytest.mark.usefixtures("folder")
def test_a_file_that_grows_while_it_is_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a policy file can be a policy file without its last forbid."""
    real = os.fstat

    def shorter(descriptor: int) -> os.stat_result:
        found = list(real(descriptor))
        found[6] -= 1
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", shorter)
    with pytest.raises(UnusableFile, match="changed while it was read"):
        read_text("good.cedar", 1000)


def test_crlf_and_byte_order_marks_change_nothing(folder: pathlib.Path) -> None:
    """What an editor adds to lines of a configuration or policy is not part of it."""
    (folder / "crlf.yaml").write_bytes(MINIMAL.replace("\n", "\r\n").encode())
    (folder / "bom.yaml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert config_file.load("crlf.yaml").policy == config_file.load("bom.yaml").policy
    (folder / "crlf.cedar").write_bytes(GOOD.replace("\n", "\r\n").encode())
    assert remit("policy", "check", "crlf.cedar").exit_code == 0


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("a: 2024-13-45", "line 1: the value is no timestamp; put it into quotes"),
        ("a:\n  !!int x", "line 2: the value is no int; put it into quotes"),
        ("a: !!bool x", "line 1: the value is no bool; put it into quotes"),
        ("a: !!float x", "line 1: the value is no float; put it into quotes"),
        (f"a: {'9' * 5000}", "line 1: the value is no int; put it into quotes"),
        ("a: &x [1]\nb: *x", "line 2: aliases are not supported"),
        ("{a: 1, a: 2}", "line 1: duplicate key `a`"),
        ("a\0: 1", "special characters are not allowed"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_every_value_that_yaml_cannot_make_is_one_kind_of_error(folder: pathlib.Path, text: str, cause: str) -> None:
    """The parser lets the errors of numbers and dates through; a person gets line and cause."""
    with pytest.raises(yaml_text.BadYaml) as caught:
        yaml_text.load(text)
    assert cause in str(caught.value)
    (folder / "bad.yaml").write_text(text)
    found = remit("serve", "--config", "bad.yaml")
    assert (found.exit_code, "`bad.yaml` is not YAML that can be used" in found.output) == (3, True)


@pytest.mark.parametrize("text", ["tests: 2024-13-45", "tests: &l [*l]", "BOMB", "tests: " + "[" * 5000])
def test_aliases_of_policy_tests_are_few(folder: pathlib.Path, text: str) -> None:
    """Tests share values by aliases; a bomb or a loop of them is refused."""
    bomb = "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9)}]\n" for i in range(1, 30)) + "tests: *k29\n"
    (folder / "tests.yaml").write_text("k0: &k0 [1]\n" + bomb if text == "BOMB" else text)
    found = remit("policy", "test", "tests.yaml", "--policies", "good.cedar")
    assert (found.exit_code, "`tests.yaml` is not YAML that can be used" in found.output) == (3, True), found.output


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ('control: {socket: "\\0/s"}', "`control.socket`: has a NUL character"),
        ('name: "\\ud800"', "`name`: has a NUL character or half of a surrogate pair"),
        (
            "journal: {dir: j, cap_bytes: 1180591620717411303424}",
            "`journal.cap_bytes`: expected `int` <= 1125899906842624",
        ),
        (
            "policy: {policies: [p], store: s, max_age_s: 1180591620717411303424}",
            "`policy.max_age_s`: expected `int` <=",
        ),
        (
            "policy: {policies: [p], store: s, limits: {text_bytes_max: 9223372036854775807}}",
            "`policy.limits.text_bytes_max`: expected `int` <= 1099511627776",
        ),
    ],
)
def test_values_that_no_system_call_takes_are_refused_by_field(extra: str, problem: str) -> None:
    """Escapes and long numbers in YAML can make what would end the process later."""
    kept = [line for line in MINIMAL.splitlines() if not line.startswith(extra.partition(":")[0] + ":")]
    with pytest.raises(ConfigError) as caught:
        config_file.parse("\n".join([*kept, extra]), "remit.yaml")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "command",
    [
        ("policy", "generate-schema", "tools.json", "--server", "s", "--output", "absent/x"),
        ("policy", "generate-schema", "tools.json", "--server", "s", "--entities", "absent/x"),
        ("policy", "generate-schema", "tools.json", "--server", "s", "--base", "absent/x"),
        ("policy", "test", "tests.yaml", "--policies", "good.cedar", "--junit", "absent/x"),
        ("collect", "--dir", "good.cedar", "--socket", "c/s"),
        ("collect", "--dir", "records", "--socket", "good.cedar/s"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(folder: pathlib.Path, command: tuple[str, ...]) -> None:
    """The command line ends with one line and status 3, whatever it was asked to write."""
    (folder / "tools.json").write_text('{"tools": []}')
    (folder / "tests.yaml").write_text("tests: []")
    found = remit(*command)
    assert (found.exit_code, isinstance(found.exception, SystemExit)) == (3, True), found.output
    assert "absent/x` " in found.output or "good.cedar` " in found.output


def test_tools_and_contexts_that_are_not_json_are_refused(folder: pathlib.Path) -> None:
    """Neither other encodings nor depth get through to a traceback."""
    (folder / "deep.json").write_text("[" * 50_000)
    explain = ("policy", "explain", "good.cedar", "--principal", 'A::"a"', "--action", 'Action::"a"')
    for command in (
        ("policy", "generate-schema", "latin", "--server", "s"),
        ("policy", "generate-schema", "deep.json", "--server", "s"),
        (*explain, "--resource", 'R::"r"', "--context", "@deep.json"),
    ):
        found = remit(*command)
        assert (found.exit_code, "not JSON" in found.output) == (3, True), found.output


def test_formatting_leaves_a_file_whole_when_the_disk_is_full(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is written beside the file and takes its place at once, with its mode."""
    policy = folder / "good.cedar"
    policy.write_text(GOOD.replace(" ", "   "))
    policy.chmod(0o640)
    before = policy.read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "good.cedar.new")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copymode", full)
        found = remit("policy", "fmt", "good.cedar")
    assert (found.exit_code, "no space left on device" in found.output) == (3, True), found.output
    assert (policy.read_text(), sorted(p.name for p in folder.glob("good*"))) == (before, ["good.cedar"])
    assert remit("policy", "fmt", "good.cedar").exit_code == 0
    assert policy.read_text() != before
    assert policy.stat().st_mode & 0o777 == 0o640


def test_aliases_of_an_envoy_configuration_are_followed_once() -> None:
    """Envoy takes aliases, so we do; a loop or a bomb of them ends all the same."""
    bomb = "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9)}]\n" for i in range(1, 30))
    text = "k0: &k0 {'@type': type/ext_authz.v3.ExtAuthz, failure_mode_allow: true}\n" + bomb + "loop: &l [*l]\n"
    assert any("failure_mode_allow" in line for line in warnings(text))
    with pytest.raises(ConfigError, match="not YAML"):
        warnings("a: 2024-13-45")
