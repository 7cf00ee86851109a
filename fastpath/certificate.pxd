"""The serial number of a certificate that Envoy passes on."""
from fastpath.value cimport Arena
from fastpath.wire cimport Text


# In lower-case hex as fastpath.verify writes it, in the arena, of the first certificate in a URL-encoded PEM; empty
# when there is none that can be read. Costs some ten microseconds.
cdef Text certificate_serial(Text encoded, Arena *arena) noexcept nogil
