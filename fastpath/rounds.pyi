"""Whose turn it is on a loop of the native listener."""

def turns(taken: list[tuple[int, int, bool]]) -> list[tuple[int, bool]]:
    """What the turns of one connection do to those behind them: each is (began, ended, much), times in ns of any clock,
    `much` when it had more to do than one turn without waiting. Of each: the bytes that it may read, and whether the
    others' turns become short for it."""
