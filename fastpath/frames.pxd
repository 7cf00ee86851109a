"""Frames of the decision journal.

A frame is {uint32_t length of payload, uint32_t CRC32C of journal id, sequence and payload, uint64_t sequence, payload,
0s to 8}. What somebody else says stands in payloads, and a start that looks for frames behind damage, or behind the end
of a file that serves again, must not take a part of one for a frame: who does not know the id makes none.
A segment, or a front, starts with SEGMENT_HEADER bytes {char[8] "REMITSEG", uint32_t version, uint32_t 0, uint8_t[16]
journal id}.
Frames follow; length 0 ends what is written. Behind it may stand frames of a segment whose file serves again: their
sequences are lower, so whoever looks behind the end knows them.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cpdef enum FrameLayout:
    SEGMENT_VERSION = 2
    UNSEEDED_VERSION = 1  # its frames' CRC32C leaves out the id; read, and written no more
    SEGMENT_HEADER = 32   # bytes before the first frame
    FRAME_HEADER = 16     # bytes before a payload
    END_BYTES = 8         # that are 0 behind the last frame, unless the segment ends there
    PAYLOAD_BYTES_MAX = 65536   # a longer payload is refused


cdef inline size_t frame_bytes(size_t payload_bytes) noexcept nogil:
    return (FRAME_HEADER + payload_bytes + 7) & ~(<size_t> 7)


# What the CRC32C of each frame behind this header goes on from.
cdef uint32_t frame_seed(const uint8_t *header) noexcept nogil
# CRC32C (RFC 3720 appendix B.4), after `seed`, of the 8 bytes of `sequence` and the payload.
cdef uint32_t frame_crc(uint32_t seed, uint64_t sequence, const uint8_t *payload, size_t n) noexcept nogil
# Write one frame where its length is 0, with the end behind it, into `room` bytes (at least frame_bytes(n), a multiple
# of 8); its length becomes visible last.
cdef void frame_put(uint8_t *at, size_t room, uint32_t seed, uint64_t sequence, const uint8_t *payload,
                    size_t n) noexcept nogil


cdef class Frames:
    """Reads frames in order, from a file that may still grow or from bytes."""
    cdef readonly size_t offset      # of the next frame
    cdef readonly uint64_t sequence  # of the last frame given; what stands before it in the journal before the first
    cdef readonly str damage         # why reading stopped before the end, else ""
    cdef uint32_t seed               # of the frames' CRC32C
    cdef int fd                      # -1: `chunk` is all there is
    cdef bytes chunk                 # what was read of the file last
    cdef size_t chunk_at             # offset of the first byte of `chunk`

    cdef const uint8_t *look(self, size_t at, size_t n)
    cdef int forget(self) except -1
    cdef str judge(self, size_t at, uint64_t *sequence, uint32_t *length)
