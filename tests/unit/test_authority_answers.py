"""RT-08: an idempotency key is remembered for its time, and no caller makes the store remember without bound."""

import pathlib
import random
from typing import Any

import pytest

from sidecar.authority import tasks
from sidecar.authority.answers import Repeat, recall, remember
from sidecar.authority.draft import ANSWERS, ANSWERS_BY, DUE, SECOND_NS, Caller, Draft, Limits
from sidecar.authority.due import sweep
from sidecar.authority.errors import RepeatedError
from tests.fix_store import ALICE, BOB, CAROL, Book, Kept, kept, task_of

MAX = 5
ANSWER_S = 100


def book() -> Book:
    return Book(answers_max=MAX, answer_s=ANSWER_S)


def give(made: Book, caller: Caller, key: str, request: bytes = b"r") -> bytes:
    """The answer to a request with a key: the one that was given, or the key's own name now."""
    repeat = Repeat(caller, "Open", key, request)

    def command(draft: Draft) -> bytes:
        before = recall(draft, repeat)
        if before is None:
            remember(draft, repeat, f"{key}@{draft.now_ns}".encode())
        return before or f"{key}@{draft.now_ns}".encode()

    return bytes(made.run(command))


def known(made: Book, caller: Caller, key: str) -> bool:
    return recall(made.draft(), Repeat(caller, "Open", key, b"r")) is not None


def stored(made: Book, table: str) -> int:
    return sum(value is not None for value in made.store.rows.get(table, {}).values())


def test_the_oldest_answer_of_the_same_caller_goes_first() -> None:
    made = book()
    give(made, BOB, "b")
    for n in range(MAX + 3):
        give(made, ALICE, f"a{n}")
    assert [n for n in range(MAX + 3) if known(made, ALICE, f"a{n}")] == [3, 4, 5, 6, 7]
    assert known(made, BOB, "b")
    assert stored(made, ANSWERS) == stored(made, DUE) == MAX + 1
    assert stored(made, ANSWERS_BY) == MAX + 1 + 2  # and where each of the two callers is


def test_a_key_that_is_asked_again_is_not_counted_again() -> None:
    made = book()
    first = give(made, ALICE, "a0")
    for _ in range(3 * MAX):
        assert give(made, ALICE, "a0") == first
    give(made, ALICE, "a1")
    assert stored(made, ANSWERS) == 2
    with pytest.raises(RepeatedError):
        give(made, ALICE, "a0", b"another")


def test_what_is_over_leaves_nothing() -> None:
    made = book()
    for n in range(2 * MAX):
        give(made, ALICE, f"a{n}")
        give(made, BOB, f"b{n % 2}")
    made.pass_s(ANSWER_S)
    made.run(sweep)
    assert [stored(made, table) for table in (ANSWERS, ANSWERS_BY, DUE)] == [0, 0, 0]


def test_a_smaller_bound_holds_from_the_next_answer_on() -> None:
    """A restart with another `authority.answers_max`."""
    made = book()
    for n in range(MAX):
        give(made, ALICE, f"a{n}")
    made.limits = Limits(answers_max=2, answer_s=ANSWER_S)
    give(made, ALICE, "last")
    assert [key for key in ("a2", "a3", "a4", "last") if known(made, ALICE, key)] == ["a4", "last"]
    assert stored(made, ANSWERS) == 2


@pytest.mark.parametrize("seed", range(20))
def test_answers_equal_a_plain_model_of_them(seed: int) -> None:
    """Any order of keys, callers and time: what is remembered is the caller's newest, and each in its time."""
    rng = random.Random(f"answers {seed}")
    made = book()
    model: dict[str, dict[str, tuple[bytes, int]]] = {caller.id: {} for caller in (ALICE, BOB, CAROL)}
    for _ in range(400):
        caller, key = rng.choice((ALICE, BOB, CAROL)), f"k{rng.randrange(8)}"
        given = model[caller.id]
        before = given.get(key)
        answer = give(made, caller, key)
        if before is not None and made.now_ns < before[1]:
            assert answer == before[0]
        elif before is None or answer != before[0]:
            given.pop(key, None)
            given[key] = (answer, made.now_ns + ANSWER_S * SECOND_NS)
        if rng.random() < 0.3:
            made.pass_s(rng.randrange(60))
        if rng.random() < 0.3:
            made.run(sweep)
            for one in model.values():
                for name in [name for name, (_, until) in one.items() if until <= made.now_ns]:
                    del one[name]
        while len(given) > MAX:
            del given[next(iter(given))]
        assert stored(made, ANSWERS) <= 3 * MAX
        assert stored(made, ANSWERS_BY) <= 3 * MAX + 3
    made.pass_s(ANSWER_S)
    made.run(sweep)
    assert [stored(made, table) for table in (ANSWERS, ANSWERS_BY, DUE)] == [0, 0, 0]


def test_the_store_remembers_so_many_over_a_restart(tmp_path: pathlib.Path) -> None:
    limits = Limits(answers_max=MAX)

    def ask(one: Kept, key: str) -> Any:
        return one.store.call(
            lambda draft: tasks.open_task(draft, task_of(), ALICE).id.encode(),
            repeat=Repeat(ALICE, "Open", key, b"r"),
            pack=lambda answer: answer,
            unpack=lambda answer: answer,
        )

    with kept(tmp_path / "s", limits=limits) as one:
        first = [ask(one, f"k{n}") for n in range(MAX + 1)]
    with kept(tmp_path / "s", limits=limits) as two:
        assert ask(two, f"k{MAX}") == first[MAX]
        assert two.store.count(ANSWERS) == MAX
        assert ask(two, "k0") != first[0]
        assert two.store.count(ANSWERS) == MAX
