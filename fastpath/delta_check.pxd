"""The structure of a delta, verified once when it is laid over a base that has been verified."""
from fastpath.rowcheck cimport Fault
from fastpath.rows cimport Table
from libc.stdint cimport uint8_t, uint64_t


# Verify the `size` bytes at `delta` (aligned to 8) against fastpath/image.pxd and against `base`, a table without a
# delta whose image has the SHA-256 `base_digest` (32 bytes). 0, or 1 with `fault` filled. The cost follows the delta.
cdef int delta_check(
    const Table *base, const uint8_t *base_digest, const uint8_t *delta, uint64_t size, Fault *fault
) noexcept nogil
