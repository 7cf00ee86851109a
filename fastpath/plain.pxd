"""Cells as Python objects, for people and tests: Cedar's JSON value format."""
from fastpath.value cimport Cell, Uid


# None for an absent cell. Extension values and entities as {"__extn": ..} and {"__entity": ..}.
cdef object cell_plain(const Cell *c)
# {"type": .., "id": ..}, or None for NULL.
cdef object uid_plain(const Uid *uid)
