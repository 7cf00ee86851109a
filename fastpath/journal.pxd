"""The decision journal: memory-mapped segments that a call writes without a system call.

A frame is {uint32_t length of payload, uint32_t CRC32C of sequence and payload, uint64_t sequence, payload, zero padding to 8}; length 0 ends
what is written. The length is stored last, so that a torn frame reads as the end.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cpdef enum JournalState:
    JOURNAL_OK = 0
    JOURNAL_FULL = 1      # no segment is free and the operator chose to stop
    JOURNAL_FAILED = 2    # the store failed; stays so until reopened


cdef class Journal:
    cdef uint8_t *segment        # mapped current segment
    cdef size_t at               # next byte to write
    cdef size_t size             # of a segment
    cdef uint64_t next_sequence
    cdef int state               # JournalState
    cdef object _impl            # file handles, directory, spare segment: under the GIL only
    cdef void *lock              # pthread mutex: calls of several threads append one at a time
    # Append one record; its sequence number, or 0 with `state` set. Assigns the sequence inside the lock.
    cdef uint64_t append(self, const uint8_t *payload, size_t n) noexcept nogil
