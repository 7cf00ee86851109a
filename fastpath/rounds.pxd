"""The rounds of a loop: what arrived, then some turns of those who wait, the clocks, and what has ended."""
from fastpath.loop cimport Loop


# Serve until the loop is stopped, and end what is left then.
cdef void rounds_run(Loop self) noexcept nogil
