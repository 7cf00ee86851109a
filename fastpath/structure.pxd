"""The structure of an image, verified once so that lookups and evaluation need no bounds checks."""
from fastpath.rowcheck cimport Fault
from libc.stdint cimport uint8_t, uint64_t


# Verify the `size` bytes at `image` (aligned to 8) against fastpath/image.pxd. 0, or 1 with `fault` filled.
cdef int structure_check(const uint8_t *image, uint64_t size, Fault *fault) noexcept nogil
