"""How long the turns of a busy connection are, and for whom they become short (fastpath/turns.pxd)."""

from fastpath.rounds import turns

US = 1_000
MS = 1_000 * US
LIT_MS = 100  # for so long turns stay short after somebody asked little


def burst(at: int, us: int, count: int) -> list[tuple[int, int, bool]]:
    """Turns in a row of so many microseconds, each with more to do behind it."""
    return [(at + number * us * US, at + (number + 1) * us * US, True) for number in range(count)]


def test_quick_turns_of_a_busy_connection_grow_to_the_largest_piece() -> None:
    assert [piece for piece, _ in turns(burst(0, 40, 5))] == [2048, 4096, 8192, 16384, 16384]


def test_a_turn_that_took_long_makes_the_next_one_smaller() -> None:
    assert [piece for piece, _ in turns([*burst(0, 40, 4), *burst(MS, 120, 5)])][4:] == [16384, 8192, 4096, 2048, 1024]


def test_the_rest_of_a_burst_makes_no_turn_short() -> None:
    """Who sends much again and again ends each time with little; the others are as busy, and nobody waits for less."""
    busy = []
    for number in range(4):
        at = 10 * MS * number
        busy += [*burst(at, 80, 3), (at + MS, at + MS + 10 * US, False)]
    made = turns(busy)
    assert not any(little for _, little in made)
    # A turn of 80 us with others that ask little would have halved it each time.
    assert made[-1][0] >= made[0][0]


def test_who_asks_little_for_a_while_makes_the_others_short() -> None:
    quiet = LIT_MS * MS
    call = [(quiet + number * MS, quiet + number * MS + 10 * US, False) for number in range(3)]
    made = turns([*burst(0, 40, 2), *call])
    # The first is the rest of what came before; then it is a moment since it took much.
    assert [little for _, little in made] == [False, False, False, True, True]


def test_a_turn_is_half_as_long_while_somebody_asks_little() -> None:
    """50 us and not 100 make the next one smaller."""
    at = LIT_MS * MS
    calls = [(at, at + 10 * US, False), (at + MS, at + MS + 10 * US, False)]
    alone = turns(burst(0, 60, 2))
    beside = turns([*calls, (at + 2 * MS, at + 2 * MS + 60 * US, True), (at + 3 * MS, at + 4 * MS, True)])
    assert alone[1][0] == alone[0][0]
    assert beside[3][0] < beside[2][0]
