"""The decision journal: memory-mapped segments that a call writes without a system call.

The layout of a segment and its frames is in fastpath/frames.pxd. The length of a frame is stored last, so that a torn
frame reads as the end.

A call must not wait for memory either: a first write to a page is a fault, which zeroes pages or asks the file system,
and can take milliseconds. So the helper makes pages ready ahead of the writer, in pieces.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fastpath.segment_files cimport SegmentFiles


cpdef enum JournalState:
    JOURNAL_OK = 0
    JOURNAL_FULL = 1      # no segment is free and the operator chose to stop
    JOURNAL_FAILED = 2    # the store failed or is closed; stays so until reopened


cdef enum:
    SPARES_MIN = 2        # segments preallocated ahead of the writer
    SPARES_MAX = 16       # of a writer that is faster than its helper
    PIECE_BYTES = 65536   # made ready at once
    LEAD_MIN = 65536      # ready ahead of the writer, of a slow one
    LEAD_MAX = 1048576
    WRITE_BYTES = 262144  # given to the disk at once with `sync: interval`
    UNMAP_BYTES = 1048576    # whose pages are let go at once
    BURST_NS = 80000      # that the helper works at a stretch, about
    BREATH_NS = 50000     # between two such bursts, for who waits for the helper's core
    KERNEL_FLUSH_MS = 5000   # how often the kernel looks for what it writes to the disk by itself, by default
    QUIET_BEATS = 50      # looks by the clock that find nothing new; then the helper sleeps until something comes


cdef struct Slot:                # one mapped segment
    uint8_t *map                 # NULL: no segment
    int file                     # the descriptor behind it
    uint64_t id                  # under which `_impl` keeps the mapping and its file
    uint64_t first_sequence      # of its first frame, once it has one
    size_t synced                # bytes from its start that are on disk
    size_t gone                  # bytes from its start whose pages are out of the mapping


cdef class Journal:
    cdef uint8_t *segment        # mapped current segment
    cdef size_t at               # next byte to write
    cdef size_t ready            # up to here pages are ready, under `sync_lock`
    cdef uint64_t ready_id       # the slot that `ready` is of
    cdef int64_t ready_ns        # when that was last begun anew
    cdef size_t ready_at         # where the writer wakes the helper for more ready pages
    cdef size_t lead             # how far ahead of the writer pages are made ready; follows its rate
    cdef uint64_t written        # bytes of frames
    cdef uint64_t written_seen   # of them, when the helper last woke by the clock
    cdef int64_t beat_ns         # between two looks of the helper by the clock
    cdef int64_t beat_due_ns
    cdef int64_t rested_ns       # when the helper last slept, under `lock`
    cdef int sync_timed          # `sync: interval`: each of these looks syncs
    cdef size_t size             # of a segment
    cdef readonly uint64_t next_sequence
    cdef readonly int state               # JournalState
    cdef object _impl            # the directory and the operator's choices: under the GIL only
    cdef SegmentFiles files      # the same
    cdef void *lock              # pthread mutex: calls of several threads append one at a time
    cdef Slot current            # the slot behind `segment`
    cdef Slot spares[SPARES_MAX]    # mapped and empty; the last one's pages rested least
    cdef int spare_count
    cdef int spares_wanted       # follows the rate of the writer
    cdef uint64_t entered        # segments that the writer has entered
    cdef uint64_t entered_seen   # of them, when maintain() last looked
    cdef readonly int at_cap     # more spares are wanted than the cap allows; what makes room looks again
    cdef Slot retired[SPARES_MAX]   # full, waiting for maintain() to unmap them
    cdef int retired_count
    cdef Slot leaving[SPARES_MAX]   # out of these, to be named and unmapped; of the helper, or who has `_impl.turn`
    cdef int leaving_count
    cdef void *wake              # pthread condition: the helper has something to do, or rests and a record came
    cdef void *sync_lock         # pthread mutex: one msync at a time, later callers share it
    cdef readonly uint64_t synced         # last sequence known to be durable
    cdef int sync_each           # append returns after msync
    cdef int sync_failed         # the disk did not take one
    cdef int work                # the helper has something to do
    cdef int upkeep              # and it is maintain()'s
    cdef int closing
    cdef int quiet               # looks by the clock in a row that found nothing new
    cdef readonly int resting    # the helper sleeps until something is appended
    cdef uint64_t oversized      # payloads refused for their size
    # Append one record; its sequence number, or 0 with `state` set (or when n is 0 or over PAYLOAD_BYTES_MAX). Assigns
    # the sequence inside the lock.
    cdef uint64_t append(self, const uint8_t *payload, size_t n) noexcept nogil
