"""Policy tests: YAML files of questions with the expected answers, run through the evaluator that decides real calls.

tests:
  - name: a covered read
    principal: Agent::"spiffe://demo/agents/reader"
    action: Action::"read"
    resource: Tool::"docs/search"
    context: {call: {data_level: 1}}
    expect: ALLOW
    reason: ok             # optional: the reason code
    policies: [base]       # optional: ids of the policies that determine, in any order
    errors: []             # optional: ids of the policies that err
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from fastpath.evaluator import Evaluation, Evaluator
from sidecar import yaml_text
from sidecar.errors import PolicyError
from sidecar.files import UnusableFile, read_text, shown
from sidecar.policy.question import Question, ask

FILE_BYTES_MAX = 16 << 20


class PolicyTest(Question, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One question with the answer that is expected. What is not given is not compared."""

    name: str
    expect: Literal["ALLOW", "DENY", "STEP_UP", "ERROR"]
    reason: str | None = None
    policies: list[str] | None = None
    errors: list[str] | None = None
    obligation: str | None = None


class _TestFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tests: list[PolicyTest]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one test found. `problems` is empty when it passed."""

    file: str
    test: PolicyTest
    answer: Evaluation | None
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.problems


def load_tests(path: str | os.PathLike[str]) -> list[PolicyTest]:
    """The tests of one file. PolicyError names the file and the place of what is wrong."""
    name = os.fspath(path)
    try:
        return msgspec.convert(yaml_text.load(read_text(name, FILE_BYTES_MAX), aliases=True), _TestFile).tests
    except UnusableFile as error:
        raise PolicyError(f"`{shown(name)}` {error}") from None
    except yaml_text.BadYaml as error:
        raise PolicyError(f"`{name}` is not YAML that can be used: {error}") from None
    except msgspec.ValidationError as error:
        message = str(error)
        raise PolicyError(f"`{name}`: {message[:1].lower()}{message[1:]}") from None


def run_tests(evaluator: Evaluator, tests: Sequence[PolicyTest], file: str = "") -> list[Outcome]:
    """The outcome of each test, in order. A test whose question is malformed fails, saying so."""
    outcomes = []
    for test in tests:
        try:
            answer = ask(evaluator, test)
        except PolicyError as error:
            outcomes.append(Outcome(file, test, None, (str(error),)))
        else:
            outcomes.append(Outcome(file, test, answer, tuple(_problems(test, answer))))
    return outcomes


def _problems(test: PolicyTest, answer: Evaluation) -> list[str]:
    found = [
        ("outcome", test.expect, answer.outcome),
        ("reason", test.reason, answer.reason),
        ("policies", _sorted(test.policies), sorted(answer.reasons)),
        ("errors", _sorted(test.errors), sorted(id_ for id_, _ in answer.errors)),
        ("obligation", test.obligation, answer.obligation),
    ]
    return [
        f"{what}: expected {_text(wanted)}, got {_text(got)}"
        for what, wanted, got in found
        if wanted is not None and wanted != got
    ]


def _sorted(ids: list[str] | None) -> list[str] | None:
    return None if ids is None else sorted(ids)


def _text(value: str | Sequence[str]) -> str:
    return f"`{value}`" if isinstance(value, str) else f"[{', '.join(value)}]"
