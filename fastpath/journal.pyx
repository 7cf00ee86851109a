"""The decision journal: appends without a system call, everything else under the GIL.

Locks, outermost first: `_impl.turn` (one maintainer), `sync_lock` (a mapping that is being synced stays mapped), `lock`
(the writer).
"""
import os
import threading
from pathlib import Path

from fastpath.c.pthread cimport (
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_signal,
    pthread_cond_t,
    pthread_cond_timedwait,
    pthread_condattr_destroy,
    pthread_condattr_init,
    pthread_condattr_setclock,
    pthread_condattr_t,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_t,
    pthread_mutex_unlock,
)
from fastpath.disk cimport disk_let_go, disk_populate, disk_write_behind
from fastpath.frames cimport END_BYTES, PAYLOAD_BYTES_MAX, SEGMENT_HEADER, frame_bytes, frame_put
from fastpath.segment_files cimport Mapped

from fastpath import frames
from fastpath.frames import gap_record
from fastpath.spool import Spool, list_segments

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset
from posix.mman cimport MS_SYNC, msync
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec

read_frames = frames.read_frames

SEGMENT_BYTES = 16 << 20
CAP_BYTES = 2 << 30
SEGMENT_BYTES_MIN = 4096
RETRY_MS = 200           # between tries to get a spare segment while there is none
IDLE_MS = 1000
SYNC_FAILED = "syncing the journal failed; the disk does not take writes"
AT_CAP = "the journal is at `cap_bytes` and waits for upstream to acknowledge records"

cdef size_t PAGE = os.sysconf("SC_PAGESIZE")
cdef size_t NOWHERE = <size_t> -1
cdef int64_t MS_NS = 1000000
cdef int64_t FOREVER_NS = 3600 * 1000 * MS_NS

cdef enum Wake:              # why the helper woke
    WAKE_UPKEEP = 1          # something is maintain()'s
    WAKE_CLOSE = 2
    WAKE_WORK = 4            # of any kind


cdef class Journal:
    def __cinit__(self):
        cdef pthread_condattr_t attributes
        self.state = JOURNAL_FAILED
        self.lock = calloc(1, sizeof(pthread_mutex_t))
        self.sync_lock = calloc(1, sizeof(pthread_mutex_t))
        self.wake = calloc(1, sizeof(pthread_cond_t))
        if self.lock == NULL or self.sync_lock == NULL or self.wake == NULL:
            raise MemoryError
        pthread_mutex_init(<pthread_mutex_t *> self.lock, NULL)
        pthread_mutex_init(<pthread_mutex_t *> self.sync_lock, NULL)
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(<pthread_cond_t *> self.wake, &attributes)
        pthread_condattr_destroy(&attributes)

    def __init__(self, directory, *, size_t segment_bytes=SEGMENT_BYTES, uint64_t cap_bytes=CAP_BYTES,
                 str on_full="deny", str sync="none", int sync_ms=100, bint helper=True, bint deferred=False):
        if on_full not in ("deny", "drop_oldest"):
            raise ValueError(f"`on_full` is `{on_full}`; it is `deny` or `drop_oldest`")
        if sync not in ("none", "interval", "each"):
            raise ValueError(f"`sync` is `{sync}`; it is `none`, `interval` or `each`")
        if segment_bytes < SEGMENT_BYTES_MIN or cap_bytes < 2 * segment_bytes:
            raise ValueError(f"`segment_bytes` is at least {SEGMENT_BYTES_MIN} and fits twice into `cap_bytes`")
        self.size = segment_bytes
        self.spares_wanted = SPARES_MIN
        self.sync_each = sync == "each"
        self.sync_timed = sync == "interval"
        self.beat_ns = (sync_ms if self.sync_timed else IDLE_MS) * MS_NS
        self.lead = LEAD_MIN
        self._impl = _Keeper(Path(directory), cap_bytes, on_full, sync, sync_ms, helper)
        if not deferred:
            self.open()

    def open(self, int lock=-1):
        """Take the directory of a journal that was made `deferred`."""
        impl = self._impl
        if impl.spool is not None or self.closing:
            raise ValueError(f"journal `{impl.directory}` is open, or was")
        spool = Spool(impl.directory, self.size, impl.cap_bytes, durable=impl.sync != "none", lock=lock)
        impl.spool, impl.id = spool, spool.id
        self.files = spool.files
        try:
            self._open()
        except BaseException:
            self._release(clean=False)
            raise
        if impl.helper:
            impl.thread = threading.Thread(target=self._maintain_always, name="remit-journal", daemon=True)
            impl.thread.start()

    def __dealloc__(self):
        if self.lock != NULL:
            pthread_mutex_destroy(<pthread_mutex_t *> self.lock)
            pthread_mutex_destroy(<pthread_mutex_t *> self.sync_lock)
            pthread_cond_destroy(<pthread_cond_t *> self.wake)
        free(self.lock)
        free(self.sync_lock)
        free(self.wake)

    def _open(self):
        spool = self._impl.spool
        first_free, gaps = spool.recover(each=self.sync_each)
        spool.save(clean=False)
        self.next_sequence = first_free
        self.synced = first_free - 1
        # A journal that is full from the last run still opens: it must be shipped. A gap must be recorded even then.
        self.state = JOURNAL_FULL
        if gaps or self.files.has_room():
            self._add_spare()
        for last, cause in gaps:
            payload = gap_record(self.next_sequence, last, cause)
            self.next_sequence = last
            self.append_bytes(payload)
        self.maintain()

    # ------------------------------------------------------------------ append

    cdef uint64_t append(self, const uint8_t *payload, size_t n) noexcept nogil:
        cdef size_t need = frame_bytes(n)
        cdef uint64_t sequence
        cdef bint wake = False
        if n == 0 or n > PAYLOAD_BYTES_MAX or need > self.size - SEGMENT_HEADER:
            self.oversized += 1
            return 0
        pthread_mutex_lock(<pthread_mutex_t *> self.lock)
        if self.state == JOURNAL_FAILED or ((self.segment == NULL or self.size - self.at < need) and not _rotate(self)):
            if self.state == JOURNAL_OK:
                self.state = JOURNAL_FULL
            pthread_mutex_unlock(<pthread_mutex_t *> self.lock)
            return 0
        sequence = self.next_sequence
        frame_put(self.segment + self.at, self.size - self.at, sequence, payload, n)
        self.at += need
        self.written += need
        self.next_sequence = sequence + 1
        if self.current.first_sequence == 0:
            self.current.first_sequence = sequence
            self.upkeep = wake = 1
        if self.at >= self.ready_at:
            self.ready_at = NOWHERE
            wake = 1
        self.work |= wake
        if self.resting:
            self.resting = 0
            wake = 1
        pthread_mutex_unlock(<pthread_mutex_t *> self.lock)
        # After the lock: on one core the helper may run at once.
        if wake:
            pthread_cond_signal(<pthread_cond_t *> self.wake)
        if self.sync_each and _sync(self, sequence) != 0:
            return 0
        return sequence

    def append_bytes(self, bytes payload not None):
        cdef const uint8_t *p = <const uint8_t *> <const char *> payload
        cdef size_t n = len(payload)
        cdef uint64_t sequence
        with nogil:
            sequence = self.append(p, n)
        return sequence

    # ------------------------------------------------------------------ upkeep

    def maintain(self):
        """Name and unmap what the writer has passed, sync what is due, and allocate what it needs next."""
        with self._impl.turn:
            if self._impl.spool is None:
                return
            self._name_and_retire()
            if self._impl.sync != "none":
                with nogil:
                    _sync(self, self.next_sequence - 1)
            self._refill()
            with nogil:
                _prepare(self, True)

    def _name_and_retire(self):
        cdef Slot current
        cdef Slot *one
        cdef bint sync = self._impl.sync != "none"
        with nogil:
            current = _take_retired(self, sync)
        # What cannot be named now stays first in the row: the next time begins with it.
        while self.leaving_count:
            one = &self.leaving[0]
            self.files.name(one.id, one.first_sequence)
            with nogil:
                _breathe(self)
                _let_go(self, one, self.size)
            self.files.release(one.id)
            self.leaving_count -= 1
            memmove(self.leaving, self.leaving + 1, self.leaving_count * sizeof(Slot))
            with nogil:
                _breathe(self)
        if current.first_sequence:
            self.files.name(current.id, current.first_sequence)

    def _follow_rate(self):
        """Want as many spares as the writer took since the last look and as many again: it may come late next time."""
        cdef int64_t wanted = 2 * <int64_t> (self.entered - self.entered_seen)
        # Spares are bytes under the cap that no record has: an eighth of it is theirs.
        cdef int64_t room = <int64_t> (self._impl.cap_bytes // 8 // self.size)
        self.entered_seen = self.entered
        # They are given up one at a time: who was fast a moment ago may be again.
        wanted = min(max(wanted, self.spares_wanted - 1), room, SPARES_MAX)
        self.spares_wanted = <int> max(wanted, SPARES_MIN)
        self.files.keep_for_reuse(self.spares_wanted)

    def _refill(self):
        """Keep spares ahead of the writer, as far as the cap and the disk allow."""
        impl = self._impl
        problem = ""
        at_cap = False
        try:
            self._follow_rate()
            while self.spare_count < self.spares_wanted:
                with nogil:
                    _breathe(self)
                if self.files.has_room():
                    self._add_spare()
                elif self.spare_count or not self._make_room():
                    problem = "" if self.spare_count else AT_CAP
                    at_cap = self.spare_count > 0
                    break
            impl.problem = problem
        except OSError as error:
            # INVARIANT (fallocate): no block is missing under a mapped segment, so a full disk shows only here.
            impl.problem = f"no journal segment can be allocated: {error.strerror or error}"
            if self.spare_count == 0:
                self._make_room()
        finally:
            self.at_cap = at_cap

    def _make_room(self):
        """Whether the journal holds less than before, or somebody removed some of it by hand."""
        impl = self._impl
        return (impl.on_full == "drop_oldest" and self.files.drop_oldest(impl.spool.acknowledged)
                or self.files.look_again())

    def _add_spare(self):
        cdef Slot slot
        cdef Mapped made = self.files.create()
        # Held until `release`.
        slot.map, slot.file, slot.id, slot.first_sequence, slot.synced = made.map, made.file, made.id, 0, 0
        slot.gone = 0
        with nogil:
            _make_ready(self, slot.map, min(self.lead, self.size))
        pthread_mutex_lock(<pthread_mutex_t *> self.lock)
        self.spares[self.spare_count] = slot
        self.spare_count += 1
        if self.state == JOURNAL_FULL:
            self.state = JOURNAL_OK
        pthread_mutex_unlock(<pthread_mutex_t *> self.lock)

    def _maintain_always(self):
        cdef int64_t due_ns = 0
        cdef int why
        while True:
            with nogil:
                why = _next_beat(self, due_ns)
            if why & WAKE_CLOSE:
                return
            if not why & WAKE_UPKEEP:
                continue
            try:
                self.maintain()
            except OSError as error:
                # The writer goes on in what it has; readiness and the next try say so.
                self._impl.problem = f"upkeep of the journal failed: {error.strerror or error}"
            due_ns = _now() + (IDLE_MS if self.spare_count else RETRY_MS) * MS_NS

    # ------------------------------------------------------------------ upstream and readers

    @property
    def id(self):
        return self._impl.id

    @property
    def directory(self):
        return self._impl.directory

    @property
    def problem(self):
        return SYNC_FAILED if self.sync_failed else self._impl.problem

    def segments(self):
        with self._impl.turn:
            if self._impl.spool is not None:
                self._name_and_retire()
            return list_segments(self._impl.directory)

    def acknowledged(self):
        with self._impl.turn:
            spool = self._impl.open_spool()
            return spool.acknowledged, spool.acknowledged_hash

    def acknowledge(self, uint64_t sequence, bytes digest not None):
        with self._impl.turn:
            spool = self._impl.open_spool()
            self._name_and_retire()
            try:
                spool.acknowledge(sequence, digest)
            finally:
                # What failed may have made room before.
                _ask_for_upkeep(self)

    def mend(self, uint64_t first_sequence):
        with self._impl.turn:
            spool = self._impl.open_spool()
            self._name_and_retire()
            if self.current.first_sequence == first_sequence:
                with nogil:
                    _leave(self)
                self._name_and_retire()
            held = list_segments(spool.directory)
            at = next((i for i, segment in enumerate(held) if segment.first_sequence == first_sequence), None)
            if at is not None:
                behind = held[at + 1].first_sequence if at + 1 < len(held) else self.next_sequence
                spool.mend(held[at].path, first_sequence, behind)
                _ask_for_upkeep(self)

    def writable(self):
        return self.state == JOURNAL_OK and (self.spare_count > 0 or (
            self.segment != NULL and self.size - self.at >= frame_bytes(min(PAYLOAD_BYTES_MAX, self.size // 4))))

    def counters(self):
        with self._impl.turn:
            spool = self._impl.open_spool()
            unused = self.spare_count * self.size + (self.size - self.at if self.segment != NULL else 0)
            return {
                "next_sequence": self.next_sequence,
                "acknowledged": spool.acknowledged,
                "bytes": max(0, <int64_t> self.files.bytes_held() - unused),
                "oversized": self.oversized,
                "dropped_segments": self.files.dropped_segments,
                "mended_segments": spool.mended_segments,
            }

    # ------------------------------------------------------------------ end

    def close(self):
        """Stop the helper, cut the current segment at its end, give the directory back; appends are then refused."""
        impl = self._impl
        if impl is None or impl.spool is None:
            return
        with nogil:
            pthread_mutex_lock(<pthread_mutex_t *> self.lock)
            self.closing = 1
            if self.state != JOURNAL_FAILED and _sync_locked(self):
                self.sync_failed = 1
            self.state = JOURNAL_FAILED
            pthread_cond_signal(<pthread_cond_t *> self.wake)
            pthread_mutex_unlock(<pthread_mutex_t *> self.lock)
        if impl.thread is not None:
            impl.thread.join()
        with impl.turn:
            self._release(clean=True)

    def give(self):
        """Close, and return the descriptor of the directory's lock, which stays taken while it is open anywhere."""
        with self._impl.turn:
            lock = self._impl.open_spool().give_lock()
        self.close()
        return lock

    def _release(self, *, clean):
        cdef size_t end = self.at
        cdef Slot last = self.current
        named = False
        try:
            if clean:
                self._name_and_retire()
            named = clean
        finally:
            self._let_go_of_all()
            # What the disk did not take was not stopped in order: the next start looks at the frames themselves.
            clean = named and not self.sync_failed
            spool, self._impl.spool = self._impl.spool, None
            try:
                if clean and last.map != NULL:
                    self.files.release(last.id, end)
            finally:
                spool.close(clean=clean)

    def _let_go_of_all(self):
        with nogil:
            # Whoever still syncs has the lock; after this no mapping is reachable.
            pthread_mutex_lock(<pthread_mutex_t *> self.sync_lock)
            pthread_mutex_lock(<pthread_mutex_t *> self.lock)
            self.segment = NULL
            memset(&self.current, 0, sizeof(Slot))
            self.spare_count = self.retired_count = self.leaving_count = 0
            pthread_mutex_unlock(<pthread_mutex_t *> self.lock)
            pthread_mutex_unlock(<pthread_mutex_t *> self.sync_lock)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class _Keeper:
    """What the journal needs of Python: the directory, the operator's choices, the helper thread."""

    def __init__(self, directory, cap_bytes, on_full, sync, sync_ms, helper):
        self.spool = None
        self.id = ""
        self.directory = directory
        self.cap_bytes = cap_bytes
        self.helper = helper
        self.on_full = on_full
        self.sync = sync
        self.sync_ms = sync_ms
        self.turn = threading.RLock()
        self.thread = None
        self.problem = ""

    def open_spool(self):
        if self.spool is None:
            raise ValueError(f"journal `{self.directory}` is closed")
        return self.spool


cdef void _ask_for_upkeep(Journal j) noexcept nogil:
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    j.work = j.upkeep = 1
    pthread_cond_signal(<pthread_cond_t *> j.wake)
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)


cdef bint _leave(Journal j) noexcept nogil:
    """Retire the current segment; the next append takes a spare. False when that cannot be."""
    cdef bint can
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    can = j.segment != NULL and j.retired_count < SPARES_MAX
    if can:
        j.retired[j.retired_count] = j.current
        j.retired_count += 1
        j.segment = NULL
        memset(&j.current, 0, sizeof(Slot))
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
    return can


cdef Slot _take_retired(Journal j, bint sync) noexcept nogil:
    """What the writer has passed, on disk where it is to be, to those that leave; the segment that it is in now."""
    cdef Slot current
    cdef int count, i
    cdef int failed = 0
    cdef pthread_mutex_t *lock = <pthread_mutex_t *> j.lock
    pthread_mutex_lock(<pthread_mutex_t *> j.sync_lock)
    pthread_mutex_lock(lock)
    count = min(j.retired_count, SPARES_MAX - j.leaving_count)
    memcpy(j.leaving + j.leaving_count, j.retired, count * sizeof(Slot))
    j.retired_count -= count
    memmove(j.retired, j.retired + count, j.retired_count * sizeof(Slot))
    current = j.current
    pthread_mutex_unlock(lock)
    # INVARIANT (synced): a segment leaves the list of `_sync` only with its pages on disk.
    for i in range(j.leaving_count, j.leaving_count + count if sync else j.leaving_count):
        failed |= _write_out(j, &j.leaving[i], j.size, j.size)
    j.leaving_count += count
    if failed:
        pthread_mutex_lock(lock)
        _fail(j)
        pthread_mutex_unlock(lock)
    pthread_mutex_unlock(<pthread_mutex_t *> j.sync_lock)
    return current


cdef bint _rotate(Journal j) noexcept nogil:
    """Take the next spare; false when there is none. The caller holds `lock`."""
    if j.spare_count == 0 or (j.segment != NULL and j.retired_count == SPARES_MAX):
        return False
    if j.segment != NULL:
        j.retired[j.retired_count] = j.current
        j.retired_count += 1
    j.entered += 1
    j.spare_count -= 1
    j.current = j.spares[j.spare_count]
    j.segment = j.current.map
    j.at = SEGMENT_HEADER
    j.ready_at = NOWHERE
    return True


cdef void _fail(Journal j) noexcept nogil:
    """Take nothing more: what is here may not be on disk, and a sync after one that failed says nothing (fsync(2)).

    The caller holds `lock`.
    """
    j.state = JOURNAL_FAILED
    j.sync_failed = 1


cdef size_t _end_of(Journal j) noexcept nogil:
    """Bytes of the current segment that say what it holds: its frames, and the end behind them."""
    return min(j.size, j.at + END_BYTES)


cdef int _sync_locked(Journal j) noexcept nogil:
    """Write out all that is mapped; the caller holds what keeps it mapped. 0, or 1 with the journal failed."""
    cdef int i
    cdef int failed = 0
    for i in range(j.retired_count):
        failed |= msync(j.retired[i].map, j.size, MS_SYNC) != 0
    if j.segment != NULL:
        failed |= msync(j.segment, _end_of(j), MS_SYNC) != 0
    return failed


cdef bint _hurries(Journal j) noexcept nogil:
    """Whether the last segment that the writer has is half full: then it comes before who shares the helper's core."""
    cdef bint last
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    last = j.spare_count == 0 and (j.segment == NULL or j.at > j.size // 2)
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
    return last


cdef void _rested(Journal j) noexcept nogil:
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    j.rested_ns = _now()
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)


cdef void _breathe(Journal j) noexcept nogil:
    """Between two pieces of work: leave the core to who waits for it, unless that has just been."""
    cdef timespec pause
    cdef int64_t now = _now()
    cdef bint due
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    due = now - j.rested_ns > BURST_NS
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
    if not due or _hurries(j):
        return
    pause.tv_sec, pause.tv_nsec = 0, BREATH_NS
    nanosleep(&pause, NULL)
    _rested(j)


cdef void _let_go(Journal j, Slot *slot, size_t end) noexcept nogil:
    """Take a segment's pages out of the mapping, piece by piece: what unmaps it then has nothing left to do."""
    cdef size_t n
    while slot.gone < end:
        n = min(<size_t> UNMAP_BYTES, end - slot.gone)
        disk_let_go(slot.map + slot.gone, n)
        slot.gone += n
        _breathe(j)


cdef void _write_behind(Journal j, Slot *slot, size_t at, size_t end, size_t passed) noexcept nogil:
    """Give the disk a segment in pieces, and the writer what it needs meanwhile. The caller holds `sync_lock`.

    Pages that the writer has `passed` leave the mapping first, all of a piece at once: the kernel then need not look
    for each where it is mapped, keep it from being written, and flush the TLB for it.
    """
    cdef size_t upto
    while at < end and not _hurries(j):
        if slot.gone < passed // PAGE * PAGE:
            upto = min(at + WRITE_BYTES, passed // PAGE * PAGE)
            disk_let_go(slot.map + slot.gone, upto - slot.gone)
            slot.gone = upto
        disk_write_behind(slot.file, at, min(<size_t> WRITE_BYTES, end - at))
        at += WRITE_BYTES
        _breathe(j)
        if _prepare_piece(j):
            _breathe(j)


cdef int _write_out(Journal j, Slot *slot, size_t end, size_t passed) noexcept nogil:
    """Have a segment on disk up to `end`; whether that failed. The caller holds `sync_lock`.

    In pieces where nobody waits for it: a whole segment is milliseconds of the kernel's work, for which calls would
    wait where they share the helper's core. The sync at the end finds all of it on its way.
    """
    cdef size_t at = slot.synced // PAGE * PAGE
    if at >= end:
        return 0
    if j.sync_timed:
        _write_behind(j, slot, at, end, passed)
    if msync(slot.map + at, end - at, MS_SYNC):
        return 1
    slot.synced = end
    return 0


cdef void _note_synced(Journal j, const Slot *slot) noexcept nogil:
    """Remember it, for the segment may be retired meanwhile. The caller holds `lock`."""
    cdef int i
    if j.current.id == slot.id:
        j.current.synced, j.current.gone = slot.synced, slot.gone
    for i in range(j.retired_count):
        if j.retired[i].id == slot.id:
            j.retired[i].synced, j.retired[i].gone = slot.synced, slot.gone


cdef int _sync(Journal j, uint64_t sequence) noexcept nogil:
    """Make all up to `sequence` durable; callers that waited share one msync. 0, or 1 with the journal failed."""
    cdef Slot slots[SPARES_MAX + 1]
    cdef size_t bytes_used[SPARES_MAX + 1]
    cdef size_t passed[SPARES_MAX + 1]
    cdef int count, i
    cdef int failed = 0
    cdef uint64_t upto
    pthread_mutex_lock(<pthread_mutex_t *> j.sync_lock)
    # The kernel tells of what it could not write once: whoever asks again after that would hear that all is well.
    if j.synced >= sequence or j.sync_failed:
        failed = j.synced < sequence
        pthread_mutex_unlock(<pthread_mutex_t *> j.sync_lock)
        return failed
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    count = j.retired_count
    for i in range(count):
        slots[i] = j.retired[i]
        bytes_used[i] = passed[i] = j.size
    if j.segment != NULL:
        slots[count] = j.current
        bytes_used[count], passed[count] = _end_of(j), j.at
        count += 1
    upto = j.next_sequence - 1
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
    for i in range(count):
        failed |= _write_out(j, &slots[i], bytes_used[i], passed[i])
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    if failed:
        _fail(j)
    else:
        j.synced = upto
        for i in range(count):
            # The end behind the last frame is written over.
            slots[i].synced = bytes_used[i] - END_BYTES
            _note_synced(j, &slots[i])
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
    pthread_mutex_unlock(<pthread_mutex_t *> j.sync_lock)
    return failed


cdef void _make_ready(Journal j, uint8_t *map, size_t end) noexcept nogil:
    """The first pages of a mapping that the writer does not have yet."""
    cdef size_t at = 0
    while at < end:
        disk_populate(map + at, min(<size_t> PIECE_BYTES, end - at))
        at += PIECE_BYTES
        _breathe(j)


cdef bint _prepare_piece(Journal j) noexcept nogil:
    """Make some pages ahead of the writer ready; whether that was not all. The caller holds `sync_lock`."""
    cdef uint8_t *segment
    cdef size_t at, start, end
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    segment, at = j.segment, j.at
    if j.ready_id != j.current.id:
        j.ready_id, j.ready = j.current.id, 0
    # Whole pages: the next piece begins where this one ends, and may not begin within a page.
    end = min(j.size, (at + j.lead + PAGE - 1) // PAGE * PAGE)
    start = max(j.ready, at // PAGE * PAGE)
    if segment == NULL or start >= end:
        j.ready_at = NOWHERE if end == j.size else end - j.lead // 2
        pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
        return False
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
    j.ready = min(end, start + PIECE_BYTES)
    disk_populate(segment + start, j.ready - start)
    return True


cdef void _ready_again(Journal j) noexcept nogil:
    """Where pages were written to the disk since, the next write is a fault again. The caller holds `sync_lock`.

    A sync writes the page that the writer is in; those ahead of it may have been written by the kernel.
    """
    cdef int64_t now = _now()
    cdef size_t page
    cdef uint8_t *segment
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    segment, page = j.segment, j.at // PAGE * PAGE
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
    if now - j.ready_ns >= KERNEL_FLUSH_MS * MS_NS:
        j.ready, j.ready_ns = 0, now
    elif segment != NULL:
        # The end behind the last frame may lie in the next one.
        disk_populate(segment + page, min(j.size, page + 2 * PAGE) - page)


cdef void _prepare(Journal j, bint by_clock) noexcept nogil:
    """Keep `lead` bytes ready ahead of the writer, and let that follow its rate."""
    cdef uint64_t written
    pthread_mutex_lock(<pthread_mutex_t *> j.sync_lock)
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    written = j.written - j.written_seen
    if by_clock:
        j.written_seen = j.written
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
    # Where a sync takes longer than a beat, every look is by the clock.
    if not by_clock or written >= j.lead:
        j.lead = min(<size_t> LEAD_MAX, 2 * j.lead)
    elif written < j.lead // 4:
        j.lead = max(<size_t> LEAD_MIN, j.lead // 2)
    if by_clock and written:
        _ready_again(j)
    while _prepare_piece(j):
        # What `sync_lock` keeps mapped may be let go of meanwhile: each piece looks anew.
        pthread_mutex_unlock(<pthread_mutex_t *> j.sync_lock)
        _breathe(j)
        pthread_mutex_lock(<pthread_mutex_t *> j.sync_lock)
    pthread_mutex_unlock(<pthread_mutex_t *> j.sync_lock)


cdef int64_t _now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t> t.tv_sec * 1000 * MS_NS + t.tv_nsec


cdef bint _upkeep_waits(Journal j) noexcept nogil:
    """Whether maintain() has something to do that nobody wakes the helper for. The caller holds `lock`.

    What failed is still to do: a spare is missing, a segment waits for its name, or what was entered was not seen.
    """
    return (j.retired_count > 0 or j.leaving_count > 0 or j.entered != j.entered_seen
            or (j.spare_count < j.spares_wanted and not j.at_cap) or j.spares_wanted > SPARES_MIN)


cdef bint _nothing_came(Journal j) noexcept nogil:
    """Whether the last look by the clock has seen all that was written. The caller holds `lock`."""
    return j.written == j.written_seen and (not j.sync_timed or j.sync_failed or j.synced == j.next_sequence - 1)


cdef int _wait(Journal j, int64_t upkeep_due_ns) noexcept nogil:
    """Sleep until a segment was entered, pages run out, something was acknowledged, or it is time; bits of Wake.

    Beside an agent that asks nothing the helper sleeps until it does.
    """
    cdef timespec until
    cdef int64_t until_ns
    cdef bint rested
    cdef int why
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    j.resting = rested = j.quiet >= QUIET_BEATS and _nothing_came(j)
    until_ns = _now() + FOREVER_NS if rested else j.beat_due_ns
    if _upkeep_waits(j):
        until_ns = min(until_ns, upkeep_due_ns)
    until.tv_sec, until.tv_nsec = until_ns // (1000 * MS_NS), until_ns % (1000 * MS_NS)
    if not j.closing and not j.work:
        pthread_cond_timedwait(<pthread_cond_t *> j.wake, <pthread_mutex_t *> j.lock, &until)
        j.rested_ns = _now()
    if rested and not j.resting:
        # What woke it is one of many, or the only one for long: neither is to wait for the disk at once.
        j.quiet = 0
        j.beat_due_ns = _now() + j.beat_ns
    j.resting = 0
    why = (WAKE_UPKEEP if j.upkeep else 0) | (WAKE_CLOSE if j.closing else 0) | (WAKE_WORK if j.work else 0)
    j.work = j.upkeep = 0
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
    return why


cdef int _next_beat(Journal j, int64_t upkeep_due_ns) noexcept nogil:
    """Sleep until something is to do, and do what needs no Python; bits of Wake."""
    cdef int why = _wait(j, upkeep_due_ns)
    cdef int64_t now = _now()
    cdef bint by_clock = now >= j.beat_due_ns
    if why & WAKE_CLOSE:
        return why
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    if by_clock:
        j.quiet = j.quiet + 1 if _nothing_came(j) else 0
    if now >= upkeep_due_ns and _upkeep_waits(j):
        why |= WAKE_UPKEEP
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
    if by_clock and j.sync_timed:
        _sync(j, j.next_sequence - 1)
    if by_clock or why & WAKE_WORK:
        _prepare(j, by_clock)
    if by_clock:
        j.beat_due_ns = now + j.beat_ns
    return why
