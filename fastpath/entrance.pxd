"""Who comes in at a native door: accepted, judged by what the kernel says, counted, and given to a loop."""
from fastpath.loop cimport Loop


# Accept some of those who wait at the listening socket.
cdef void entrance_accept(Loop self) noexcept nogil
# Set up connections that other loops accepted for this one.
cdef void entrance_take_over(Loop self) noexcept nogil
