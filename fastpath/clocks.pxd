"""What time brings to the connections of a loop: what has begun must end, who is silent is asked, who is old leaves."""
from fastpath.loop cimport Loop


# Look at the clocks of some connections; those that remain have their look after the events at hand.
cdef void clocks_look(Loop self) noexcept nogil
