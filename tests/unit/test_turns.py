"""How long the turns of a busy connection are, and for whom they become short (fastpath/turns.pxd)."""

from fastpath.rounds import turns

US = 1_000
MS = 1_000 * US
LONG_AGO = 1_000 * MS
ONE, OTHER, THIRD = 0, 1, 2

CALL = 900  # bytes

Turn = tuple[int, int, int, int, bool]


def burst(who: int, at: int, us: int, count: int) -> list[Turn]:
    """Turns in a row of so many microseconds, each with more to do behind it."""
    return [(who, at + number * us * US, at + (number + 1) * us * US, 9 * CALL, True) for number in range(count)]


def call(who: int, at: int, us: int = 10, size: int = CALL) -> Turn:
    return (who, at, at + us * US, size, False)


def pieces(taken: list[Turn]) -> list[int]:
    return [piece for piece, _ in turns(taken)]


def short(taken: list[Turn]) -> list[bool]:
    return [judged for _, judged in turns(taken)]


def test_quick_turns_of_a_busy_connection_grow_to_the_largest_piece() -> None:
    assert pieces(burst(ONE, LONG_AGO, 40, 5)) == [2048, 4096, 8192, 16384, 16384]


def test_a_turn_that_took_long_makes_the_next_one_smaller() -> None:
    taken = [*burst(ONE, LONG_AGO, 40, 4), *burst(ONE, LONG_AGO + MS, 120, 6)]
    assert pieces(taken)[4:] == [16384, 8192, 4096, 2048, 1024, 1024]


def test_turns_are_short_while_others_ask_little() -> None:
    """Half as long: 60 us make the next one smaller, which alone leave it as it is."""
    asked = [call(OTHER, LONG_AGO), call(OTHER, LONG_AGO + MS)]
    busy = burst(ONE, LONG_AGO + 2 * MS, 60, 3)
    assert short([*asked, *busy])[2:] == [True] * 3
    assert pieces([*asked, *busy])[2:] == [2048, 1024, 1024]
    assert pieces(busy) == [2048] * 3


def test_a_tenth_of_a_second_later_they_are_not() -> None:
    asked = [call(OTHER, LONG_AGO), call(OTHER, LONG_AGO + MS)]
    assert short([*asked, *burst(ONE, LONG_AGO + 100 * MS, 60, 1)])[-1]
    assert not short([*asked, *burst(ONE, LONG_AGO + 101 * MS, 60, 1)])[-1]


def test_nobody_makes_their_own_turns_short() -> None:
    """A proxy alone with its sidecar asks little now and much then, and waits for nobody."""
    alone = [call(ONE, LONG_AGO + 2 * number * MS) for number in range(4)]
    assert not any(short([*alone, *burst(ONE, LONG_AGO + 9 * MS, 60, 2)]))
    # Nor when another one asked before, for whom they are.
    asked = [call(OTHER, LONG_AGO - MS), call(OTHER, LONG_AGO - MS // 2)]
    assert short([*asked, *alone, *burst(ONE, LONG_AGO + 9 * MS, 60, 1)])[-1]


def test_the_busy_do_not_make_each_others_turns_short() -> None:
    """Who sends much again and again ends each time with little; the others are as busy, and nobody waits for less."""
    taken = []
    for number in range(4):
        for who in (ONE, OTHER, THIRD):
            at = LONG_AGO + (10 * number + 3 * who) * MS
            taken += [*burst(who, at, 80, 4), call(who, at + MS), call(who, at + 2 * MS)]
    assert not any(short(taken))


def test_a_burst_now_and_then_is_no_reason_to_wait_longer() -> None:
    """A proxy that passes on a few calls at once is one for whom the turns of others are short."""
    proxy = [*burst(OTHER, LONG_AGO, 40, 2), call(OTHER, LONG_AGO + MS), call(OTHER, LONG_AGO + 2 * MS)]
    assert short([*proxy, *burst(ONE, LONG_AGO + 3 * MS, 60, 1)])[-1]


def test_who_asks_one_thing_at_a_time_asks_little_however_long_or_large_it_is() -> None:
    """That a turn took long is chance; what is large in itself is not many."""
    for us, size in ((200, CALL), (10, 8 * CALL)):
        calls = [call(OTHER, LONG_AGO + number * MS, us, size) for number in range(20)]
        calls += [call(OTHER, LONG_AGO + 20 * MS), call(OTHER, LONG_AGO + 21 * MS)]
        assert short([*calls, *burst(ONE, LONG_AGO + 22 * MS, 60, 1)])[-1]
