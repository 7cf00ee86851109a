"""Writers of policy test outcomes: a table for people, JUnit XML for build servers."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from itertools import groupby

from rich.markup import escape
from rich.table import Table

from sidecar.policy.testing import Outcome

# What XML 1.0 cannot carry even as a reference (section 2.2).
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_table(outcomes: Sequence[Outcome]) -> Table:
    """One row per test: name, expected and actual outcome, determining policies, what differs."""
    failed = sum(not outcome.passed for outcome in outcomes)
    table = Table(title=f"{len(outcomes)} tests, {failed} failed", title_justify="left")
    for heading in ("", "test", "expected", "got", "reason", "policies", *(["problem"] if failed else [])):
        table.add_column(heading, overflow="fold")
    for outcome in outcomes:
        answer = outcome.answer
        cells = (
            outcome.test.name,
            outcome.test.expect,
            answer.outcome if answer else "-",
            answer.reason if answer else "-",
            ", ".join(answer.reasons) if answer else "-",
            *(["; ".join(outcome.problems)] if failed else []),
        )
        mark = "[green]ok[/]" if outcome.passed else "[red]FAIL[/]"
        table.add_row(mark, *(escape(cell) for cell in cells))
    return table


def as_junit(outcomes: Sequence[Outcome]) -> bytes:
    """A JUnit XML document in UTF-8: one suite per file, one case per test."""
    root = ET.Element("testsuites", name="policy")
    for file, group in groupby(outcomes, key=lambda outcome: outcome.file):
        members = list(group)
        failures = str(sum(not outcome.passed for outcome in members))
        suite = ET.SubElement(
            root, "testsuite", name=_clean(file), tests=str(len(members)), failures=failures, errors="0"
        )
        for outcome in members:
            case = ET.SubElement(suite, "testcase", name=_clean(outcome.test.name), classname=_clean(file))
            if not outcome.passed:
                problem = _clean("; ".join(outcome.problems))
                ET.SubElement(case, "failure", message=problem).text = problem
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
