"""The engine under test, behind the one face that the differential and conformance tests know."""

from __future__ import annotations

from random import Random
from threading import Thread

from fastpath.evaluator import Evaluation, Evaluator
from fastpath.table import Generation
from sidecar.errors import SidecarError
from sidecar.policy.cells import encode_context
from sidecar.policy.compile import compile_image
from tests.differential.case import Json, Record
from tests.differential.compare import Difference, Reply, agree, expectations
from tests.differential.oracle import Answer, Refused, schema_of

ARENA_BYTES = 1 << 20


def refusal(error: Exception) -> Refused:
    """What a failure counts as: only our typed errors are refusals."""
    return Refused(f"{type(error).__name__}: {error}", tidy=isinstance(error, SidecarError))


class Ours:
    """The compiled policies and entities of one record, to be asked in both modes."""

    def __init__(self, record: Record) -> None:
        self.refused: Refused | None = None
        try:
            self._generation = Generation.from_bytes(_image(record))
        except Exception as error:  # whatever escapes the compiler is a finding, not a crash of the run
            self.refused = refusal(error)

    def ask(self, requests: list[Json], *, strict: bool) -> list[Reply]:
        """One reply per request."""
        if self.refused:
            return [self.refused] * len(requests)
        evaluator = Evaluator(self._generation, strict=strict)
        return [ask_one(evaluator, request) for request in requests]

    def evaluator(self, *, strict: bool) -> Evaluator:
        return Evaluator(self._generation, strict=strict)


def _image(record: Record) -> bytes:
    schema = schema_of(record)
    if record.get("typed") and schema is None and validates(record):
        raise ValueError("policies that fail Cedar's strict validation were taken")
    return compile_image(
        record["policies"],
        entities=record["entities"],
        links=record.get("links", ()),
        schema=schema,
        positional_ids=True,
        columns=record.get("columns", False),
    ).image


def validates(record: Record) -> bool:
    """Whether our compiler takes the record's policies under its schema."""
    try:
        compile_image(record["policies"], schema=record["schema"], positional_ids=True, columns=False)
    except SidecarError:
        return False
    return True


def ask_one(evaluator: Evaluator, request: Json) -> Reply:
    principal, action, resource = ((request[k]["type"], request[k]["id"]) for k in ("principal", "action", "resource"))
    try:
        context = encode_context(request["context"])
        parent = request.get("resourceParent")
        found = evaluator.evaluate(
            principal,
            action,
            resource,
            context,
            resource_parent=(parent["type"], parent["id"]) if parent else None,
            arena_bytes=ARENA_BYTES,
        )
    except Exception as error:  # as above
        return refusal(error)
    return answer(found)


def answer(found: Evaluation) -> Reply:
    if found.outcome not in ("ALLOW", "DENY"):
        return Refused(f"outcome {found.outcome}, reason {found.reason}", tidy=False)
    erring = [name for name, _ in found.errors]
    if len(set(found.reasons)) < len(found.reasons) or len(set(erring)) < len(erring):
        return Refused(f"a policy was met twice: reasons {found.reasons}, errors {erring}", tidy=False)
    return Answer(found.outcome.lower(), frozenset(found.reasons), frozenset(erring))


def in_threads(records: list[Record], *, seed: int, threads: int = 4, turns: int = 3) -> list[Difference]:
    """Ask several tables, each shared by all threads, the same requests in random orders; what came out wrong."""
    subjects = [Ours(record) for record in records]
    expected = [expectations(record) for record in records]
    jobs = [
        (table, at, strict)
        for table, record in enumerate(records)
        if subjects[table].refused is None
        for at in range(len(record["requests"]))
        for strict in (False, True)
    ]
    shared = {(table, strict): subjects[table].evaluator(strict=strict) for table, _, strict in jobs}
    found: list[Difference] = []

    def ask(evaluator: Evaluator, table: int, at: int, strict: bool) -> None:
        got, want = ask_one(evaluator, records[table]["requests"][at]), expected[table][strict][at]
        if not agree(want, got):
            found.append(Difference(f"threads, {'strict' if strict else 'cedar'}", at, want, got))

    def work(number: int) -> None:
        for turn in range(turns):
            mixed = Random(f"{seed} {number} {turn}").sample(jobs, len(jobs))
            for table, at, strict in mixed:
                ask(shared[table, strict], table, at, strict)
            if number == 0 and mixed:
                # A table compiled while the others are in use, asked and let go.
                table, at, strict = mixed[0]
                ask(Ours(records[table]).evaluator(strict=strict), table, at, strict)

    workers = [Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found
