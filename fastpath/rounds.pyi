"""Whose turn it is on a loop of the native listener."""

def turns(taken: list[tuple[int, int, int, bool]]) -> list[tuple[int, bool]]:
    """What turns do to those behind them: each is (connection, began, ended, much), with connections by numbers below 4,
    times in ns of any clock, and `much` when it had more to do than one turn without waiting has. Of each: the bytes
    that it may read, and whether it is to be short. ValueError for a connection that there is not."""
