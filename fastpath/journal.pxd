"""The decision journal: records that a call writes without a system call, and segments that keep them.

A call puts its record into a front, a small file that is mapped. A helper copies what is in the fronts to the segments,
in order, and gives the fronts back: so a call writes to memory that was used a moment ago, and waits for no page.

The layout of a front, a segment and their frames is in fastpath/frames.pxd. The length of a frame is stored last, so
that a torn frame reads as the end.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fastpath.front_files cimport FrontFiles
from fastpath.segment_files cimport SegmentFiles


cpdef enum JournalState:
    JOURNAL_OK = 0
    JOURNAL_FULL = 1      # no room is left and the operator chose to stop
    JOURNAL_FAILED = 2    # the store failed or is closed; stays so until reopened


cdef enum:
    FRONT_BYTES = 131072  # of a front, where segments are not smaller: a few of them fit into a core's own cache
    FRONTS_FIRST = 4      # without these there is no journal
    FRONTS_MIN = 32
    FRONTS_MAX = 128      # of a writer that is faster than its helper, or than the disk takes a sync
    WRITE_BYTES = 1048576    # that the disk is asked for at once where there is time
    AHEAD_MIN = 2         # segments allocated ahead
    AHEAD_MAX = 16        # of a writer that is faster than upkeep
    BURST_NS = 80000      # that the helper works at a stretch, about
    BREATH_NS = 50000     # between two such bursts, for who waits for the helper's core
    QUIET_BEATS = 50      # looks by the clock that find nothing new; then the helper sleeps until something comes


cdef struct Front:
    uint8_t *map                 # NULL: no front
    uint64_t first_sequence      # of its first frame, once it has one
    size_t copied                # bytes from its start that segments have
    size_t end                   # of its frames, once the writer has left it


cdef struct Output:              # a segment that fronts are copied to
    int file                     # its descriptor; -1: no segment
    uint64_t id                  # under which `files` keeps it
    uint64_t first_sequence      # of its first frame, once it has one
    size_t at                    # next byte to write
    size_t begun                 # bytes from its start that are on their way to the disk
    size_t synced                # that are on disk


cdef class Journal:
    # Of the writer, under `lock`.
    cdef uint8_t *front          # mapped current front
    cdef size_t at               # next byte to write
    cdef size_t size             # of a front
    cdef uint32_t seed           # of the frames' CRC32C
    cdef Front current           # the front behind `front`
    cdef Front free[FRONTS_MAX]  # empty; the last one's memory rested least
    cdef int free_count
    cdef Front full[FRONTS_MAX]  # in the order of their records, waiting to be copied
    cdef int full_count
    cdef int front_count         # of all of them
    cdef int fronts_wanted       # as far as the disk has room for them
    cdef int fronts_most
    cdef int fewest              # that were free at a time, since maintain() last looked
    cdef int64_t room            # bytes of segments that no front in use may need
    cdef uint64_t written        # bytes of frames
    cdef uint64_t written_seen   # of them, when the helper last woke by the clock
    cdef readonly uint64_t next_sequence
    cdef readonly int state               # JournalState
    cdef int work                # the helper has something to do
    cdef int upkeep              # and it is maintain()'s
    cdef int closing
    cdef int quiet               # looks by the clock in a row that found nothing new
    cdef readonly int resting    # the helper sleeps until something is appended
    cdef uint64_t oversized      # payloads refused for their size
    cdef int64_t rested_ns       # when the helper last slept
    # Of who copies, under `copy_lock`.
    cdef Output out
    cdef Output ahead[AHEAD_MAX]    # allocated and empty; the last one's pages rested least
    cdef int ahead_count
    cdef Output passed[AHEAD_MAX]   # full, waiting for maintain() to name and close them
    cdef int passed_count
    cdef size_t segment_bytes
    cdef uint64_t copied         # last sequence that segments have, when all was copied last
    cdef uint64_t entered        # segments that were begun
    cdef readonly uint64_t synced         # last sequence known to be durable
    cdef int sync_failed         # the disk did not take what it was to
    # Of maintain(), under the GIL and `_impl.turn`.
    cdef object _impl            # the directory and the operator's choices
    cdef SegmentFiles files
    cdef FrontFiles fronts
    cdef Output leaving[AHEAD_MAX]  # out of `passed`
    cdef int leaving_count
    cdef int ahead_wanted        # follows the rate of the writer
    cdef uint64_t entered_seen   # of `entered`, when maintain() last looked
    cdef readonly int at_cap     # more segments are wanted ahead than the cap allows; what makes room looks again
    # Set once.
    cdef int64_t beat_ns         # between two looks of the helper by the clock
    cdef int64_t beat_due_ns
    cdef int sync_timed          # `sync: interval`: each of these looks syncs
    cdef int sync_each           # append returns after a sync
    cdef void *lock              # pthread mutex: calls of several threads append one at a time
    cdef void *copy_lock         # pthread mutex: one copies or syncs at a time, later callers share it
    cdef void *wake              # pthread condition: the helper has something to do, or rests and a record came
    # Append one record; its sequence number, or 0 with `state` set (or when n is 0 or over PAYLOAD_BYTES_MAX). Assigns
    # the sequence inside the lock.
    cdef uint64_t append(self, const uint8_t *payload, size_t n) noexcept nogil
