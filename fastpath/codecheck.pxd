"""Programs that must be checked before they run: operands in range, jumps forward, the stack within bounds."""
from fastpath.bounds cimport View
from fastpath.image cimport Policy
from libc.stdint cimport int32_t


# Whether the program of `policy` may run: its words and all constants are inside the image (checked before). `depths`
# is scratch for one int32_t per word of the longest program.
cdef bint code_check(View *view, const Policy *policy, int32_t *depths) noexcept nogil
