"""The decision journal: appends without a system call, everything else under the GIL.

Locks, outermost first: `_impl.turn` (one maintainer), `copy_lock` (who copies fronts to segments, or syncs these),
`lock` (the writer).
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
from fastpath.disk cimport disk_read_through, disk_sync_data, disk_write, disk_write_behind, disk_write_both
from fastpath.frames cimport END_BYTES, PAYLOAD_BYTES_MAX, SEGMENT_HEADER, frame_bytes, frame_put, frame_seed
from fastpath.front_files cimport FrontFiles
from fastpath.segment_files cimport Opened

from fastpath import frames
from fastpath.frames import gap_record
from fastpath.spool import Spool, list_segments

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec

read_frames = frames.read_frames

SEGMENT_BYTES = 16 << 20
CAP_BYTES = 2 << 30
SEGMENT_BYTES_MIN = 4096
RETRY_MS = 200           # between tries to get a segment ahead while there is none
IDLE_MS = 1000
BEAT_MS = 100            # after which readers find what was written, where nothing is synced
SYNC_FAILED = "syncing the journal failed; the disk does not take writes"
AT_CAP = "the journal is at `cap_bytes` and waits for upstream to acknowledge records"

cdef int64_t MS_NS = 1000000
cdef int64_t FOREVER_NS = 3600 * 1000 * MS_NS
cdef uint8_t[END_BYTES] _end

cdef enum Wake:              # why the helper woke
    WAKE_UPKEEP = 1          # something is maintain()'s
    WAKE_CLOSE = 2
    WAKE_WORK = 4            # of any kind

cdef enum Copied:
    COPIED_ALL = 0
    COPIED_NO_ROOM = 1       # it takes a segment more, which is maintain()'s
    COPIED_FAILED = 2        # the disk does not take it


cdef class Journal:
    def __cinit__(self):
        cdef pthread_condattr_t attributes
        self.state = JOURNAL_FAILED
        self.out.file = -1
        self.lock = calloc(1, sizeof(pthread_mutex_t))
        self.copy_lock = calloc(1, sizeof(pthread_mutex_t))
        self.wake = calloc(1, sizeof(pthread_cond_t))
        if self.lock == NULL or self.copy_lock == NULL or self.wake == NULL:
            raise MemoryError
        pthread_mutex_init(<pthread_mutex_t *> self.lock, NULL)
        pthread_mutex_init(<pthread_mutex_t *> self.copy_lock, NULL)
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(<pthread_cond_t *> self.wake, &attributes)
        pthread_condattr_destroy(&attributes)

    def __init__(self, directory, *, size_t segment_bytes=SEGMENT_BYTES, uint64_t cap_bytes=CAP_BYTES,
                 str on_full="deny", str sync="none", int sync_ms=100, bint helper=True, bint deferred=False):
        cdef uint64_t fit
        if on_full not in ("deny", "drop_oldest"):
            raise ValueError(f"`on_full` is `{on_full}`; it is `deny` or `drop_oldest`")
        if sync not in ("none", "interval", "each"):
            raise ValueError(f"`sync` is `{sync}`; it is `none`, `interval` or `each`")
        if segment_bytes < SEGMENT_BYTES_MIN or cap_bytes < 2 * segment_bytes:
            raise ValueError(f"`segment_bytes` is at least {SEGMENT_BYTES_MIN} and fits twice into `cap_bytes`")
        self.segment_bytes = segment_bytes
        self.size = min(segment_bytes, <size_t> FRONT_BYTES)
        # Beside a small cap they are few.
        fit = cap_bytes // self.size
        self.fronts_wanted = <int> max(<uint64_t> FRONTS_FIRST, min(<uint64_t> FRONTS_MIN, fit // 16))
        self.fronts_most = <int> max(<uint64_t> FRONTS_FIRST, min(<uint64_t> FRONTS_MAX, fit // 4))
        self.ahead_wanted = AHEAD_MIN
        self.sync_each = sync == "each"
        self.sync_timed = sync == "interval"
        self.beat_ns = (sync_ms if self.sync_timed else BEAT_MS) * MS_NS
        self._impl = _Keeper(Path(directory), cap_bytes, on_full, sync, sync_ms, helper)
        if not deferred:
            self.open()

    def open(self, int lock=-1):
        """Take the directory of a journal that was made `deferred`."""
        impl = self._impl
        if impl.spool is not None or self.closing:
            raise ValueError(f"journal `{impl.directory}` is open, or was")
        spool = Spool(impl.directory, self.segment_bytes, impl.cap_bytes, durable=impl.sync != "none", lock=lock)
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
            pthread_mutex_destroy(<pthread_mutex_t *> self.copy_lock)
            pthread_cond_destroy(<pthread_cond_t *> self.wake)
        free(self.lock)
        free(self.copy_lock)
        free(self.wake)

    def _open(self):
        cdef bytes header
        spool = self._impl.spool
        first_free, gaps = spool.recover(each=self.sync_each)
        spool.save(clean=False)
        self.next_sequence = first_free
        self.synced = self.copied = first_free - 1
        header = spool.header
        self.seed = frame_seed(<const uint8_t *> <const char *> header)
        self.fronts = FrontFiles(spool.folder, spool.header, self.size)
        # The others follow as far as the disk allows.
        while self.front_count < FRONTS_FIRST:
            self._add_front()
        # A journal that is full from the last run still opens: it must be shipped. A gap must be recorded even then.
        self.state = JOURNAL_FULL
        if gaps or self.files.has_room():
            self._add_ahead()
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
        if self.state == JOURNAL_FAILED or ((self.front == NULL or self.size - self.at < need) and not _rotate(self)):
            if self.state == JOURNAL_OK:
                self.state = JOURNAL_FULL
            pthread_mutex_unlock(<pthread_mutex_t *> self.lock)
            return 0
        sequence = self.next_sequence
        frame_put(self.front + self.at, self.size - self.at, self.seed, sequence, payload, n)
        self.at += need
        self.written += need
        self.next_sequence = sequence + 1
        if self.current.first_sequence == 0:
            self.current.first_sequence = sequence
            # The front before it can be copied.
            self.work = wake = 1
        if self.resting:
            self.resting = 0
            wake = 1
        pthread_mutex_unlock(<pthread_mutex_t *> self.lock)
        # After the lock: on one core the helper may run at once.
        if wake:
            pthread_cond_signal(<pthread_cond_t *> self.wake)
        if self.sync_each and not _sync(self, sequence):
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
        """Copy what is in the fronts, sync what is due, name and close full segments, and allocate what comes next."""
        with self._impl.turn:
            if self._impl.spool is None:
                return
            done = self._copy()
            self._name_and_retire()
            self._refill()
            if not done:
                # There may be room now for what had none.
                self._copy()

    def _copy(self):
        cdef bint sync = self._impl.sync != "none"
        cdef bint done
        with nogil:
            done = _sync(self, self.next_sequence - 1) if sync else _drain_unless_failed(self, True)
        return done

    def _name_and_retire(self):
        cdef Output current
        cdef const Output *one
        cdef bint sync = self._impl.sync != "none"
        with nogil:
            current = _take_passed(self, sync)
        # What cannot be named now stays first in the row: the next time begins with it.
        while self.leaving_count:
            one = &self.leaving[0]
            self.files.name(one.id, one.first_sequence)
            self.files.release(one.id)
            self.leaving_count -= 1
            memmove(self.leaving, self.leaving + 1, self.leaving_count * sizeof(Output))
        if current.first_sequence:
            self.files.name(current.id, current.first_sequence)

    def _follow_rate(self):
        """Want as many segments ahead as were begun since the last look and as many again: it may be late next time."""
        cdef int64_t wanted = 2 * <int64_t> (self.entered - self.entered_seen)
        # They are bytes under the cap that no record has: an eighth of it is theirs.
        cdef int64_t room = <int64_t> (self._impl.cap_bytes // 8 // self.segment_bytes)
        self.entered_seen = self.entered
        # They are given up one at a time: who was fast a moment ago may be again.
        wanted = min(max(wanted, self.ahead_wanted - 1), room, AHEAD_MAX)
        self.ahead_wanted = <int> max(wanted, AHEAD_MIN)
        self.files.keep_for_reuse(self.ahead_wanted)

    def _refill(self):
        """Keep segments ahead, as far as the cap and the disk allow, and as many fronts as the writer needs."""
        impl = self._impl
        problem = ""
        at_cap = False
        try:
            self._follow_rate()
            while self.ahead_count < self.ahead_wanted:
                with nogil:
                    _breathe(self)
                if self.files.has_room():
                    self._add_ahead()
                elif self.ahead_count or not self._make_room():
                    problem = "" if self.ahead_count else AT_CAP
                    at_cap = self.ahead_count > 0
                    break
            self._add_fronts()
            impl.problem = problem
        except OSError as error:
            # INVARIANT (fallocate): no block is missing under a segment, so a full disk shows only here.
            impl.problem = f"no journal segment can be allocated: {error.strerror or error}"
            if self.ahead_count == 0:
                self._make_room()
        finally:
            self.at_cap = at_cap

    def _make_room(self):
        """Whether the journal holds less than before, or somebody removed some of it by hand."""
        impl = self._impl
        return (impl.on_full == "drop_oldest" and self.files.drop_oldest(impl.spool.acknowledged)
                or self.files.look_again())

    def _add_ahead(self):
        cdef Output made
        cdef Opened opened = self.files.create()
        made.file, made.id, made.first_sequence, made.at = opened.file, opened.id, 0, SEGMENT_HEADER
        made.begun = made.synced = SEGMENT_HEADER
        with nogil:
            if opened.fresh:
                _read_through(self, made.file)
            pthread_mutex_lock(<pthread_mutex_t *> self.copy_lock)
            self.ahead[self.ahead_count] = made
            self.ahead_count += 1
            pthread_mutex_lock(<pthread_mutex_t *> self.lock)
            self.room += <int64_t> (self.segment_bytes - SEGMENT_HEADER)
            _look_for_room(self)
            pthread_mutex_unlock(<pthread_mutex_t *> self.lock)
            pthread_mutex_unlock(<pthread_mutex_t *> self.copy_lock)

    def _add_fronts(self):
        """As many again where the writer was near their end; of the disk they take a sixteenth of what is free."""
        cdef int wanted = self.fronts_wanted
        disk = os.statvfs(self._impl.directory)
        if self.front_count >= wanted and _fronts_lack(self):
            wanted = min(self.fronts_most, 2 * self.front_count)
        self.fronts_wanted = min(wanted, self.front_count + disk.f_bavail * disk.f_frsize // 16 // self.size)
        while self.front_count < self.fronts_wanted:
            self._add_front()
        with nogil:
            pthread_mutex_lock(<pthread_mutex_t *> self.lock)
            self.fewest = self.free_count
            pthread_mutex_unlock(<pthread_mutex_t *> self.lock)

    def _add_front(self):
        cdef Front made
        made.map, made.first_sequence, made.copied, made.end = self.fronts.create(), 0, SEGMENT_HEADER, 0
        with nogil:
            pthread_mutex_lock(<pthread_mutex_t *> self.lock)
            self.front_count += 1
            # First in the row: those that rested less come before it.
            memmove(self.free + 1, self.free, self.free_count * sizeof(Front))
            self.free[0] = made
            self.free_count += 1
            _look_for_room(self)
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
            due_ns = _now() + (IDLE_MS if self.ahead_count else RETRY_MS) * MS_NS

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
                with nogil:
                    _drain_unless_failed(self, True)
                self._name_and_retire()
            return list_segments(self._impl.directory, fronts=self._impl.spool is None)

    def acknowledged(self):
        with self._impl.turn:
            spool = self._impl.open_spool()
            return spool.acknowledged, spool.acknowledged_hash

    def acknowledge(self, uint64_t sequence, bytes digest not None):
        with self._impl.turn:
            spool = self._impl.open_spool()
            with nogil:
                _drain_unless_failed(self, True)
            self._name_and_retire()
            try:
                spool.acknowledge(sequence, digest)
            finally:
                # What failed may have made room before.
                _ask_for_upkeep(self)

    def mend(self, uint64_t first_sequence):
        with self._impl.turn:
            spool = self._impl.open_spool()
            with nogil:
                _drain_unless_failed(self, True)
            self._name_and_retire()
            if self.out.first_sequence == first_sequence:
                with nogil:
                    _leave(self)
                self._name_and_retire()
            # Before the listing: what is copied after it may be in a segment that it does not show.
            behind = self.copied + 1
            held = list_segments(spool.directory, fronts=False)
            at = next((i for i, segment in enumerate(held) if segment.first_sequence == first_sequence), None)
            if at is not None:
                if at + 1 < len(held):
                    behind = held[at + 1].first_sequence
                spool.mend(held[at].path, first_sequence, behind)
                _ask_for_upkeep(self)

    def writable(self):
        return self.state == JOURNAL_OK and (_can_rotate(self) or (
            self.front != NULL and self.size - self.at >= frame_bytes(min(PAYLOAD_BYTES_MAX, self.size // 4))))

    def counters(self):
        cdef int64_t unused
        cdef int i
        with self._impl.turn:
            spool = self._impl.open_spool()
            with nogil:
                pthread_mutex_lock(<pthread_mutex_t *> self.copy_lock)
                unused = self.ahead_count * <int64_t> self.segment_bytes
                if self.out.file >= 0:
                    unused += <int64_t> (self.segment_bytes - self.out.at)
                pthread_mutex_lock(<pthread_mutex_t *> self.lock)
                for i in range(self.full_count):
                    unused -= <int64_t> (self.full[i].end - self.full[i].copied)
                if self.front != NULL:
                    unused -= <int64_t> (self.at - self.current.copied)
                pthread_mutex_unlock(<pthread_mutex_t *> self.lock)
                pthread_mutex_unlock(<pthread_mutex_t *> self.copy_lock)
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
        cdef bint failed
        impl = self._impl
        if impl is None or impl.spool is None:
            return
        with nogil:
            pthread_mutex_lock(<pthread_mutex_t *> self.copy_lock)
            pthread_mutex_lock(<pthread_mutex_t *> self.lock)
            self.closing = 1
            failed = self.state == JOURNAL_FAILED
            self.state = JOURNAL_FAILED
            pthread_cond_signal(<pthread_cond_t *> self.wake)
            pthread_mutex_unlock(<pthread_mutex_t *> self.lock)
            if not failed and (_drain(self, True) == COPIED_FAILED or _sync_files(self)):
                self.sync_failed = 1
            pthread_mutex_unlock(<pthread_mutex_t *> self.copy_lock)
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
        cdef Output last = self.out
        named = False
        try:
            if clean:
                self._name_and_retire()
                last = self.out
            named = clean
        finally:
            # What has no room in the segments is in the fronts at the next start.
            empty = self.copied == self.next_sequence - 1
            self._let_go_of_all()
            # What the disk did not take was not stopped in order: the next start looks at the frames themselves.
            clean = named and not self.sync_failed and (empty or self.fronts.sync())
            spool, self._impl.spool = self._impl.spool, None
            try:
                if clean and last.file >= 0:
                    self.files.release(last.id, last.at)
            finally:
                if self.fronts is not None:
                    self.fronts.close(clean and empty)
                spool.close(clean=clean)

    def _let_go_of_all(self):
        with nogil:
            # Whoever still copies has the lock; after this no front is reachable.
            pthread_mutex_lock(<pthread_mutex_t *> self.copy_lock)
            pthread_mutex_lock(<pthread_mutex_t *> self.lock)
            self.front = NULL
            memset(&self.current, 0, sizeof(Front))
            self.free_count = self.full_count = self.front_count = 0
            memset(&self.out, 0, sizeof(Output))
            self.out.file = -1
            self.ahead_count = self.passed_count = self.leaving_count = 0
            pthread_mutex_unlock(<pthread_mutex_t *> self.lock)
            pthread_mutex_unlock(<pthread_mutex_t *> self.copy_lock)

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


cdef void _want_upkeep(Journal j) noexcept nogil:
    """Wake the helper for what is maintain()'s. The caller holds `lock`."""
    j.work = j.upkeep = 1
    pthread_cond_signal(<pthread_cond_t *> j.wake)


cdef void _ask_for_upkeep(Journal j) noexcept nogil:
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    _want_upkeep(j)
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)


# ------------------------------------------------------------------ the writer's fronts; the caller holds `lock`

cdef bint _can_rotate(Journal j) noexcept nogil:
    """Whether there is an empty front, and room for what it may hold in segments."""
    return j.free_count > 0 and j.room + _unused(j) >= <int64_t> (j.size - SEGMENT_HEADER)


cdef int64_t _unused(Journal j) noexcept nogil:
    """Bytes of the current front that need no room once the writer has left it."""
    return <int64_t> (j.size - j.at) if j.front != NULL else 0


cdef void _look_for_room(Journal j) noexcept nogil:
    if j.state == JOURNAL_FULL and _can_rotate(j):
        j.state = JOURNAL_OK


cdef bint _rotate(Journal j) noexcept nogil:
    """Go on in the next front; false when there is none."""
    if not _can_rotate(j):
        return False
    j.room += _unused(j) - <int64_t> (j.size - SEGMENT_HEADER)
    if j.front != NULL:
        j.current.end = j.at
        j.full[j.full_count] = j.current
        j.full_count += 1
    j.free_count -= 1
    j.current = j.free[j.free_count]
    j.front = j.current.map
    j.at = SEGMENT_HEADER
    j.fewest = min(j.fewest, j.free_count)
    if _fronts_lack(j):
        j.upkeep = 1
    return True


cdef bint _fronts_lack(Journal j) noexcept nogil:
    return j.front_count < j.fronts_wanted or (j.front_count < j.fronts_most and j.fewest < j.front_count // 4)


cdef void _give_back(Journal j) noexcept nogil:
    """The first full front was copied: it is empty again."""
    cdef Front one = j.full[0]
    # INVARIANT (end first): what it held is never read as what it holds next.
    memset(one.map + SEGMENT_HEADER, 0, END_BYTES)
    one.first_sequence, one.copied, one.end = 0, SEGMENT_HEADER, 0
    j.full_count -= 1
    memmove(j.full, j.full + 1, j.full_count * sizeof(Front))
    j.free[j.free_count] = one
    j.free_count += 1
    _look_for_room(j)


cdef void _fail(Journal j) noexcept nogil:
    """Take nothing more: what is here may not be on disk, and a sync after one that failed says nothing (fsync(2))."""
    j.state = JOURNAL_FAILED
    j.sync_failed = 1


# ------------------------------------------------------------------ into segments; the caller holds `copy_lock`

cdef bint _next_segment(Journal j) noexcept nogil:
    """Go on in the next segment; false when maintain() has to bring one."""
    if j.ahead_count == 0 or j.passed_count == AHEAD_MAX:
        return False
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    if j.out.file >= 0:
        j.room -= <int64_t> (j.segment_bytes - j.out.at)
        j.passed[j.passed_count] = j.out
        j.passed_count += 1
    _want_upkeep(j)
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
    j.entered += 1
    j.ahead_count -= 1
    j.out = j.ahead[j.ahead_count]
    return True


cdef size_t _whole_frames(const uint8_t *p, size_t n, size_t room) noexcept nogil:
    """Bytes of the frames at `p`, of `n` in all, that fit into `room`."""
    cdef uint32_t length
    cdef size_t fit = 0
    if n <= room:
        return n
    while fit < n:
        memcpy(&length, p + fit, 4)
        if fit + frame_bytes(length) > room:
            break
        fit += frame_bytes(length)
    return fit


cdef void _read_through(Journal j, int file) noexcept nogil:
    """What is copied to a new segment comes in pieces: have the kernel take memory for it in larger ones before."""
    cdef size_t at = 0
    while at < j.segment_bytes:
        disk_read_through(file, at, min(<size_t> FRONT_BYTES, j.segment_bytes - at))
        at += FRONT_BYTES
        _breathe(j)


cdef int _put(Journal j, const uint8_t *p, size_t n) noexcept nogil:
    """Write frames behind those of the current segment, so that nobody sees part of one; -1 with `errno` set."""
    cdef size_t end = j.out.at + n
    # What stands where the end is now comes last: it holds the first one's length.
    if disk_write_both(j.out.file, p + END_BYTES, n - END_BYTES, _end, min(<size_t> END_BYTES, j.segment_bytes - end),
                       j.out.at + END_BYTES):
        return -1
    if disk_write(j.out.file, p, END_BYTES, j.out.at):
        return -1
    if j.out.first_sequence == 0:
        memcpy(&j.out.first_sequence, p + 8, 8)
    j.out.at = end
    if j.sync_timed and end - j.out.begun >= WRITE_BYTES:
        disk_write_behind(j.out.file, j.out.begun, end - j.out.begun)
        j.out.begun = end
    return 0


cdef int _copy_front(Journal j, Front *front, size_t end) noexcept nogil:
    """Copy what the segments lack of a front's frames, up to `end`; a Copied."""
    cdef size_t n
    while front.copied < end:
        n = 0
        if j.out.file >= 0:
            n = _whole_frames(front.map + front.copied, end - front.copied, j.segment_bytes - j.out.at)
        if n == 0:
            if not _next_segment(j):
                return COPIED_NO_ROOM
            continue
        if _put(j, front.map + front.copied, n):
            return COPIED_FAILED
        front.copied += n
    return COPIED_ALL


cdef int _drain(Journal j, bint all) noexcept nogil:
    """Copy the fronts that the writer has left, with `all` also what is in the current one; a Copied."""
    cdef Front front
    cdef uint64_t last
    cdef int done
    cdef size_t end
    cdef bint full
    while True:
        pthread_mutex_lock(<pthread_mutex_t *> j.lock)
        full = j.full_count > 0
        front = j.full[0] if full else j.current
        end = front.end if full else j.at
        last = j.next_sequence - 1
        pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
        if not full and (not all or front.map == NULL):
            return COPIED_ALL
        done = _copy_front(j, &front, end)
        pthread_mutex_lock(<pthread_mutex_t *> j.lock)
        if done == COPIED_FAILED:
            _fail(j)
        if full:
            j.full[0].copied = front.copied
            if done == COPIED_ALL:
                _give_back(j)
        elif j.current.map == front.map:
            j.current.copied = front.copied
        else:
            # The writer has left it meanwhile: it is the first of those.
            j.full[0].copied = front.copied
        if done == COPIED_NO_ROOM:
            _want_upkeep(j)
            if j.sync_each and j.state == JOURNAL_OK:
                # What is asked now cannot be on disk before it is answered.
                j.state = JOURNAL_FULL
        pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
        if done != COPIED_ALL:
            return done
        if not full:
            j.copied = last
            return COPIED_ALL
        if not j.sync_each:
            _breathe(j)


cdef bint _drain_unless_failed(Journal j, bint all) noexcept nogil:
    """The same for who does not hold `copy_lock`; whether all of it was copied."""
    cdef bint done
    pthread_mutex_lock(<pthread_mutex_t *> j.copy_lock)
    done = j.state != JOURNAL_FAILED and _drain(j, all) == COPIED_ALL
    pthread_mutex_unlock(<pthread_mutex_t *> j.copy_lock)
    return done


cdef int _sync_file(Output *one) noexcept nogil:
    if one.file < 0 or one.synced == one.at:
        return 0
    if disk_sync_data(one.file):
        return -1
    one.synced = one.at
    return 0


cdef int _sync_files(Journal j) noexcept nogil:
    """Have on disk all that was copied; -1 when it did not take that."""
    cdef int i
    for i in range(j.passed_count):
        if _sync_file(&j.passed[i]):
            return -1
    return _sync_file(&j.out)


cdef void _leave(Journal j) noexcept nogil:
    """Have the current segment named and closed; what is copied next goes to another. For who holds no lock."""
    pthread_mutex_lock(<pthread_mutex_t *> j.copy_lock)
    if j.out.file >= 0 and j.passed_count < AHEAD_MAX:
        pthread_mutex_lock(<pthread_mutex_t *> j.lock)
        j.room -= <int64_t> (j.segment_bytes - j.out.at)
        pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
        j.passed[j.passed_count] = j.out
        j.passed_count += 1
        memset(&j.out, 0, sizeof(Output))
        j.out.file = -1
    pthread_mutex_unlock(<pthread_mutex_t *> j.copy_lock)


cdef Output _take_passed(Journal j, bint sync) noexcept nogil:
    """Full segments, on disk where they are to be, to those that leave; the segment that is written to now."""
    cdef Output current
    cdef int count, i
    cdef int failed = 0
    pthread_mutex_lock(<pthread_mutex_t *> j.copy_lock)
    count = min(j.passed_count, AHEAD_MAX - j.leaving_count)
    # INVARIANT (synced): a segment leaves the list of `_sync` only with its pages on disk.
    for i in range(count if sync else 0):
        failed |= _sync_file(&j.passed[i])
    memcpy(j.leaving + j.leaving_count, j.passed, count * sizeof(Output))
    j.leaving_count += count
    j.passed_count -= count
    memmove(j.passed, j.passed + count, j.passed_count * sizeof(Output))
    current = j.out
    if failed:
        pthread_mutex_lock(<pthread_mutex_t *> j.lock)
        _fail(j)
        pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
    pthread_mutex_unlock(<pthread_mutex_t *> j.copy_lock)
    return current


cdef bint _sync(Journal j, uint64_t sequence) noexcept nogil:
    """Make all up to `sequence` durable; callers that waited share one sync. Whether it is."""
    cdef bint done
    pthread_mutex_lock(<pthread_mutex_t *> j.copy_lock)
    # The kernel tells of what it could not write once: whoever asks again after that would hear that all is well.
    if j.synced < sequence and not j.sync_failed and _drain(j, True) == COPIED_ALL:
        if _sync_files(j):
            pthread_mutex_lock(<pthread_mutex_t *> j.lock)
            _fail(j)
            pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
        else:
            j.synced = j.copied
    done = j.synced >= sequence
    pthread_mutex_unlock(<pthread_mutex_t *> j.copy_lock)
    return done


# ------------------------------------------------------------------ the helper

cdef bint _hurries(Journal j) noexcept nogil:
    """Whether the writer has few fronts left: then it comes before who shares the helper's core."""
    cdef bint few
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    few = j.free_count < j.front_count // 2
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
    return few


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


cdef int64_t _now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t> t.tv_sec * 1000 * MS_NS + t.tv_nsec


cdef bint _upkeep_waits(Journal j) noexcept nogil:
    """Whether maintain() has something to do that nobody wakes the helper for. The caller holds `lock`.

    What failed is still to do: a spare is missing, a segment waits for its name, or what was entered was not seen.
    """
    return (j.passed_count > 0 or j.leaving_count > 0 or j.entered != j.entered_seen
            or (j.ahead_count < j.ahead_wanted and not j.at_cap) or j.ahead_wanted > AHEAD_MIN or _fronts_lack(j))


cdef bint _nothing_came(Journal j) noexcept nogil:
    """Whether the last look by the clock has seen all that was written. The caller holds `lock`."""
    return j.written == j.written_seen and (not j.sync_timed or j.sync_failed or j.synced == j.next_sequence - 1)


cdef int _wait(Journal j, int64_t upkeep_due_ns) noexcept nogil:
    """Sleep until a front was entered, something was acknowledged, or it is time; bits of Wake.

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
    cdef uint64_t written
    if why & WAKE_CLOSE:
        return why
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    if by_clock:
        j.quiet = j.quiet + 1 if _nothing_came(j) else 0
    written = j.written
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
    if by_clock and j.sync_timed:
        _sync(j, j.next_sequence - 1)
    elif by_clock or why & WAKE_WORK:
        _drain_unless_failed(j, by_clock)
    pthread_mutex_lock(<pthread_mutex_t *> j.lock)
    if by_clock:
        j.written_seen = written
        j.beat_due_ns = now + j.beat_ns
    if j.upkeep or (now >= upkeep_due_ns and _upkeep_waits(j)):
        why |= WAKE_UPKEEP
        j.upkeep = 0
    pthread_mutex_unlock(<pthread_mutex_t *> j.lock)
    return why
