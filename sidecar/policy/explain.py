"""Why a decision came out as it did: which policies match, and what each of their conditions says.

Every conjunct of a matching policy (`a`, `b` of `when { a && b }`) is compiled as a program of its own and evaluated on
the same question, so a reader sees the first one that was false or erred, and what the ones behind it would have said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastpath.evaluator import Evaluation, Evaluator
from fastpath.table import Generation
from sidecar.policy.clauses import Kind, split_clauses
from sidecar.policy.code import Constants
from sidecar.policy.edits import Overlay
from sidecar.policy.entities import load_entities
from sidecar.policy.image import EntityRow, PolicyRow, ScopeRow, Source, write_image
from sidecar.policy.lexer import Piece
from sidecar.policy.links import parse_links
from sidecar.policy.parse import Parsed, parse, split_all
from sidecar.policy.program import WHOLE_CONTEXT, compile_conditions
from sidecar.policy.question import Question, ask
from sidecar.policy.rules import name_policies
from sidecar.policy.schema import load_schema
from sidecar.policy.source import SourceTexts

Truth = Literal["true", "false", "error"]


@dataclass(frozen=True, slots=True)
class Conjunct:
    """One part of a clause: its Cedar text, its value, and what went wrong when that is `error`."""

    text: str
    value: Truth
    cause: str
    reached: bool
    """Whether the decision evaluated it: nothing before it was false or erred."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One `when` (all parts must be true) or `unless` (not all parts may be true)."""

    kind: Kind
    conjuncts: tuple[Conjunct, ...]


@dataclass(frozen=True, slots=True)
class PolicyExplanation:
    """One policy whose scope matches. `satisfied` is None when it erred."""

    id: str
    effect: Literal["permit", "forbid"]
    where: str
    template: str
    satisfied: bool | None
    cause: str
    clauses: tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision, the policies whose scope matches, and the inputs that they read and the question does not have."""

    decision: Evaluation
    policies: tuple[PolicyExplanation, ...]
    missing: tuple[str, ...]


class Explainer:
    """Explains decisions of a generation with the texts that it was built from.

    `generation` must be compiled from `texts`: a policy that only one of them has is explained without its clauses.
    """

    def __init__(self, texts: SourceTexts, generation: Generation) -> None:
        """PolicyError when the texts cannot be read."""
        self.evaluator = Evaluator(generation)
        overlay = Overlay(texts.edits)
        files, edits = (parse(split_all(some, texts.limits)) for some in (texts.policies, overlay.policies))
        self._named = overlay.rules(name_policies(files, positional=False), name_policies(edits, positional=False))
        links = parse_links(texts.links.text, texts.links.name, texts.limits) if texts.links else []
        self._templates = {placed.link.id: placed.link.template for placed in overlay.links(links)}
        schema = None if texts.schema is None else load_schema(texts.schema, texts.limits).handle
        document, name = (texts.entities.text, texts.entities.name) if texts.entities else ("[]", "entities")
        self._entities = load_entities(overlay.entities(document), schema, name)

    def explain(self, question: Question) -> Explanation:
        """What each policy whose scope matches says to `question`. PolicyError when the question is malformed."""
        decision = ask(self.evaluator, question)
        principal, action, resource, context, rest = question.arguments()
        traced = self.evaluator.trace(principal, action, resource, context, **rest)
        values = self._values([self._parsed(id_) for id_, *_ in traced], question)
        policies = []
        reads: set[str] = set()
        for (id_, effect, _, satisfied, cause), (clauses, extras) in zip(traced, values, strict=True):
            parsed = self._parsed(id_)
            reads |= extras
            policies.append(
                PolicyExplanation(
                    id=id_,
                    effect="forbid" if effect == "forbid" else "permit",
                    where=parsed.piece.where if parsed else "",
                    template=self._templates.get(id_, ""),
                    satisfied=satisfied,
                    cause=cause,
                    clauses=clauses,
                )
            )
        missing = sorted(name for name in reads if name in question.unsent or name not in question.context)
        return Explanation(decision, tuple(policies), tuple(missing))

    def _parsed(self, id_: str) -> Parsed | None:
        return self._named.get(self._templates.get(id_, id_))

    def _values(
        self, policies: Sequence[Parsed | None], question: Question
    ) -> list[tuple[tuple[Clause, ...], set[str]]]:
        """Per policy: its clauses with every conjunct evaluated, and the names under `context` that it reads."""
        split = [split_clauses(policy.piece.text) if policy else [] for policy in policies]
        constants = Constants()
        rows = [
            _row(number, text, constants)
            for number, text in enumerate(text for clauses in split for clause in clauses for text in clause.conjuncts)
        ]
        found = iter(zip(rows, _run(rows, self._entities, constants, question), strict=True))
        out = []
        for clauses in split:
            extras: set[str] = set()
            valued = []
            for clause in clauses:
                conjuncts = []
                for text in clause.conjuncts:
                    row, (value, cause) = next(found)
                    extras |= row.program.extras
                    conjuncts.append((text, value, cause))
                valued.append((clause.kind, conjuncts))
            out.append((_clauses(valued), extras - {WHOLE_CONTEXT}))
        return out


def _row(number: int, text: str, constants: Constants) -> PolicyRow:
    """A policy that is satisfied when the condition `text` is true."""
    piece = Piece(f"permit (principal, action, resource) when {{ {text} }};", "condition", 1, 1, None)
    (parsed,) = parse([piece])
    program = compile_conditions(parsed.est["conditions"], constants, columns=True)
    return PolicyRow(f"{number:08d}", False, 0, ScopeRow(), ScopeRow(), ScopeRow(), program)


def _run(
    rows: list[PolicyRow], entities: Sequence[EntityRow], constants: Constants, question: Question
) -> list[tuple[Truth, str]]:
    """The value of each row's program, in order."""
    if not rows:
        return []
    with Generation.from_bytes(write_image(Source(rows, entities, constants))) as generation:
        principal, action, resource, context, rest = question.arguments()
        traced = Evaluator(generation).trace(principal, action, resource, context, **rest)
    return [_truth(satisfied, cause) for _, _, _, satisfied, cause in traced]


def _truth(satisfied: bool | None, cause: str) -> tuple[Truth, str]:
    if satisfied is None:
        return "error", cause
    return ("true" if satisfied else "false"), ""


def _clauses(found: list[tuple[Kind, list[tuple[str, Truth, str]]]]) -> tuple[Clause, ...]:
    """Mark what was reached: a policy stops at the clause that fails, a clause at its first part that is not true."""
    clauses = []
    policy_goes_on = True
    for kind, parts in found:
        goes_on = policy_goes_on
        conjuncts = []
        for text, value, cause in parts:
            conjuncts.append(Conjunct(text, value, cause, goes_on))
            goes_on = goes_on and value == "true"
        erred = any(part.reached and part.value == "error" for part in conjuncts)
        policy_goes_on = policy_goes_on and not erred and goes_on == (kind == "when")
        clauses.append(Clause(kind, tuple(conjuncts)))
    return tuple(clauses)
