"""The configuration file: typed, strict, every problem named at once (SY-07)."""

import pathlib

import pytest

from sidecar import config_docs, config_file
from sidecar.errors import ConfigError

MINIMAL = """
identity: {workload_api: "unix:///run/spire/agent.sock"}
listeners:
  agents:
    - {socket: run/agent/sock, spiffe_id: "spiffe://corp.example/agents/a"}
policy: {policies: [policies], store: var/generations}
journal: {dir: var/journal}
control: {socket: run/control/sock}
"""


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        config_file.parse(text, "/etc/remit/remit.yaml")
    return caught.value.problems


def test_a_minimal_file_gets_the_documented_defaults() -> None:
    """What is not said has the default that the documentation prints."""
    config = config_file.parse(MINIMAL, "/etc/remit/remit.yaml")
    assert config.limits.budget_ms == 50
    assert config.policy.evaluation == "strict"
    assert config.journal.on_full == "deny"
    assert config.limits.ext_authz_bytes == 1 << 20
    assert config.limits.check_bytes == 256 << 10
    assert config.upstream is None


def test_relative_paths_are_relative_to_the_file() -> None:
    """Where the sidecar is started from changes nothing."""
    config = config_file.parse(MINIMAL, "/etc/remit/remit.yaml")
    assert config.policy.policies == ["/etc/remit/policies"]
    assert config.listeners.agents[0].socket == "/etc/remit/run/agent/sock"
    assert config.journal.dir == "/etc/remit/var/journal"
    assert config.file == "/etc/remit/remit.yaml"


@pytest.mark.parametrize(
    ("change", "path", "cause"),
    [
        ("polices: {}", "polices", "unknown key"),
        ("limits: {budget: 3}", "limits.budget", "unknown key"),
        ("limits: {budget_ms: soon}", "limits.budget_ms", "expected `int`"),
        ("limits: {budget_ms: 0}", "limits.budget_ms", ">= 1"),
        ("limits: [1]", "limits", "expected a section"),
        ("peps: [Envoy]", "peps[0]", "not a SPIFFE ID"),
        ('peps: ["spiffe://corp.example"]', "peps[0]", "not a workload"),
        ('peps: ["spiffe://Corp.example/e"]', "peps[0]", "not a SPIFFE ID"),
        ('peps: ["spiffe://corp.example/e\\n"]', "peps[0]", "not a SPIFFE ID"),
        ('peps: ["spiffe://corp.example/a/../b"]', "peps[0]", "not a SPIFFE ID"),
        ("metrics: {address: localhost}", "metrics.address", "not an address"),
        ("metrics: {address: '127.0.0.1:70000'}", "metrics.address", "not an address"),
        ("metrics: {address: 'example.org:80'}", "metrics.address", "not an address"),
        ("upstream: {address: 'c:1'}", "upstream.spiffe_id", "missing"),
        ("upstream: {}", "upstream", "either"),
        ("log: {format: xml}", "log.format", "invalid enum value"),
        ("file: x", "file", "unknown key"),
        ("process: {allow_root: 'yes'}", "process.allow_root", "expected `bool`"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_path(change: str, path: str, cause: str) -> None:
    """Each problem says where it is and why."""
    (line,) = problems(f"{MINIMAL}{change}\n")
    assert line.startswith(f"`{path}`: ")
    assert cause in line


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("journal: {dir: var/journal}\n", "", "journal"),
        ("{dir: var/journal}", "{}", "journal.dir"),
        ("{dir: var/journal}", "{dir: j, cap_bytes: 16777216}", "journal.cap_bytes"),
        ("[policies]", "[]", "policy.policies"),
        ("spiffe_id:", "spiffeid:", "listeners.agents[0].spiffeid"),
        ("run/control/sock", "run/agent/other", "control.socket"),
        ("run/control/sock", "run/" + "x" * 100 + "/sock", "control.socket"),
        ("  agents:\n", "  ext_authz: {address: '127.0.0.1:0'}\n  agents:\n", "peps"),
        ("  agents:\n", "  ext_authz: {}\n  agents:\n", "listeners.ext_authz"),
        ("  agents:\n", "  ext_authz: {socket: e/s}\n  agents:\n", "listeners.ext_authz.spiffe_id"),
    ],
)
def test_what_is_missing_or_contradicts_is_named(old: str, new: str, path: str) -> None:
    """A file that cannot work is refused before anything starts."""
    assert any(line.startswith(f"`{path}`: ") for line in problems(MINIMAL.replace(old, new)))


def test_all_problems_are_listed_at_once() -> None:
    """Nobody has to start the sidecar once per mistake."""
    lines = problems(f"{MINIMAL}limits: {{budget_ms: x, workers: -1, tempo: 9}}\npeps: 7\n")
    assert {line.split("`")[1] for line in lines} == {"limits.budget_ms", "limits.workers", "limits.tempo", "peps"}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("a: [", "not YAML"),
        (MINIMAL + "journal: {dir: other}\n", "duplicate key `journal`"),
        (MINIMAL.replace("[policies]", "&p [policies]") + "peps: *p\n", "aliases are not supported"),
        ("? [1, 2]\n: 3\n", "a key must be plain text"),
        ("- 1\n", "expected a section"),
        ("!!python/object/apply:os.getcwd []\n", "not YAML"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_a_text_that_can_be_read_two_ways_is_refused(text: str, cause: str) -> None:
    """Duplicate keys, aliases, tags and broken YAML are errors, not surprises."""
    assert any(cause in line for line in problems(text))


def test_a_file_that_cannot_be_read_says_why(tmp_path: pathlib.Path) -> None:
    """Absent, too large and not UTF-8 are three different causes."""
    with pytest.raises(ConfigError, match="no such file"):
        config_file.load(tmp_path / "absent.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * (config_file.FILE_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="larger than"):
        config_file.load(tmp_path / "big.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(ConfigError, match=r"not UTF-8 \(line 1, byte 6\)"):
        config_file.load(tmp_path / "latin.yaml")


def test_the_workload_api_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """SPIFFE Workload Endpoint section 4: SPIFFE_ENDPOINT_SOCKET; without either the file is refused."""
    text = MINIMAL.replace('identity: {workload_api: "unix:///run/spire/agent.sock"}\n', "")
    monkeypatch.delenv("SPIFFE_ENDPOINT_SOCKET", raising=False)
    assert problems(text)[0].startswith("`identity.workload_api`: ")
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", "unix:///run/other.sock")
    assert config_file.parse(text, "/x.yaml").workload_api == "unix:///run/other.sock"


def test_every_field_is_documented() -> None:
    """`remit doctor --print-config` leaves nothing to guess: a text for each field, a unit for each number."""
    fields = list(config_docs.documentation())
    assert [f.path for f in fields if not f.text] == []
    assert [
        f.path
        for f in fields
        if f.default.isdigit() and not f.unit and not f.path.startswith(("policy.limits", "mapping"))
    ] == []
    assert len({f.path for f in fields}) == len(fields)
    assert "listeners.agents[].spiffe_id" in {f.path for f in fields}
