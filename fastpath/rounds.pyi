"""Whose turn it is on a loop of the native listener."""

def turns(given: list[tuple[int, int, int, int, bool]]) -> list[tuple[int, bool]]:
    """What turns do to those behind them: each is (connection, began, ended, bytes, more), with connections by numbers
    below 4, times in ns of any clock, bytes that it took with one call in them, and whether there was more to do.

    Of each: the bytes that it may read, and whether it is to be short. ValueError for a connection that there is not.
    """
