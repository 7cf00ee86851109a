"""Writes and reads the frames of a journal segment.

Reading uses pread, never a mapping: a segment that somebody cuts short must end a reader's loop, not its process.
"""
import os

from fastpath.wire cimport Out, out_bytes, out_close, out_open, out_uint

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    static uint32_t crc32c_table[256];
    static int crc32c_hardware;

    static void crc32c_prepare(void) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int k = 0; k < 8; k++) c = c & 1 ? (c >> 1) ^ 0x82F63B78u : c >> 1;
            crc32c_table[i] = c;
        }
    #if defined(__x86_64__)
        crc32c_hardware = __builtin_cpu_supports("sse4.2") != 0;
    #endif
    }

    static uint32_t crc32c_portable(uint32_t c, const uint8_t *p, size_t n) {
        while (n--) c = (c >> 8) ^ crc32c_table[(c ^ *p++) & 0xFF];
        return c;
    }

    #if defined(__x86_64__)
    __attribute__((target("sse4.2")))
    static uint32_t crc32c_sse42(uint32_t c, const uint8_t *p, size_t n) {
        uint64_t word, wide = c;
        for (; n >= 32; n -= 32, p += 32) {
    #pragma GCC unroll 4
            for (int i = 0; i < 32; i += 8) {
                memcpy(&word, p + i, 8);
                wide = __builtin_ia32_crc32di(wide, word);
            }
        }
        for (; n >= 8; n -= 8, p += 8) {
            memcpy(&word, p, 8);
            wide = __builtin_ia32_crc32di(wide, word);
        }
        c = (uint32_t) wide;
        while (n--) c = __builtin_ia32_crc32qi(c, *p++);
        return c;
    }

    __attribute__((target("sse4.2")))
    static uint32_t crc32c_numbered_sse42(uint32_t c, uint64_t sequence, const uint8_t *p, size_t n) {
        return crc32c_sse42((uint32_t) __builtin_ia32_crc32di(c, sequence), p, n);
    }
    #endif

    static uint32_t crc32c_more(uint32_t c, const void *p, size_t n) {
    #if defined(__x86_64__)
        if (crc32c_hardware) return crc32c_sse42(c, (const uint8_t *) p, n);
    #endif
        return crc32c_portable(c, (const uint8_t *) p, n);
    }

    /* After c, of the 8 bytes of a number, then of the n. */
    static uint32_t crc32c_numbered(uint32_t c, uint64_t sequence, const uint8_t *p, size_t n) {
    #if defined(__x86_64__)
        if (crc32c_hardware) return crc32c_numbered_sse42(c, sequence, p, n);
    #endif
        return crc32c_portable(crc32c_portable(c, (const uint8_t *) &sequence, 8), p, n);
    }

    enum { LINE = 64, LINES_AHEAD = 16 };

    /* Have the cache lines of n bytes at p on their way, for who writes there next. */
    static void lines_ahead(const uint8_t *p, size_t n) {
        const uint8_t *end = p + (n < LINE * LINES_AHEAD ? n : LINE * LINES_AHEAD);
        for (; p < end; p += LINE) __builtin_prefetch(p, 1);
    }

    static void store_release(void *p, uint32_t v) { __atomic_store_n((uint32_t *) p, v, __ATOMIC_RELEASE); }
    """
    int crc32c_hardware
    void crc32c_prepare() nogil
    uint32_t crc32c_more(uint32_t c, const void *p, size_t n) nogil
    uint32_t crc32c_portable(uint32_t c, const uint8_t *p, size_t n) nogil
    uint32_t crc32c_numbered(uint32_t c, uint64_t sequence, const uint8_t *p, size_t n) nogil
    void store_release(void *p, uint32_t v) nogil
    void lines_ahead(const uint8_t *p, size_t n) nogil

cdef enum:
    GAP_BYTES_MAX = 1024
    CAUSE_BYTES_MAX = 512

cdef size_t CHUNK_BYTES = 256 * 1024

# A frame found after damage must be near in sequence, so that bytes that happen to look like one are not taken for one.
cdef uint64_t RESYNC_REACH = 1 << 32

crc32c_prepare()


cdef uint32_t frame_seed(const uint8_t *header) noexcept nogil:
    cdef uint32_t version
    memcpy(&version, header + 8, 4)
    return 0xFFFFFFFF if version == UNSEEDED_VERSION else crc32c_more(0xFFFFFFFF, header + 16, 16)


cdef uint32_t frame_crc(uint32_t seed, uint64_t sequence, const uint8_t *payload, size_t n) noexcept nogil:
    return ~crc32c_numbered(seed, sequence, payload, n)


cdef void frame_put(uint8_t *at, size_t room, uint32_t seed, uint64_t sequence, const uint8_t *payload,
                    size_t n) noexcept nogil:
    cdef uint32_t crc = frame_crc(seed, sequence, payload, n)
    cdef size_t need = frame_bytes(n)
    # INVARIANT (end ahead): a length that is 0 stands behind the last frame, whatever the memory held before.
    if room - need >= END_BYTES:
        memset(at + need, 0, END_BYTES)
    else:
        memset(at + need, 0, room - need)
    memset(at + need - 8, 0, 8)
    memcpy(at + 4, &crc, 4)
    memcpy(at + 8, &sequence, 8)
    memcpy(at + FRAME_HEADER, payload, n)
    # INVARIANT (length last): whoever sees the length sees the whole frame, and the end behind it.
    store_release(at, <uint32_t> n)
    # The next frame is about as long, and memory that was not written for a while is far away.
    lines_ahead(at + need, min(need + 2 * 64, room - need))


cdef class Frames:
    def __init__(self, source, size_t from_offset=SEGMENT_HEADER, uint64_t after=0):
        cdef const uint8_t *head
        self.offset = from_offset
        self.sequence = after
        self.damage = ""
        self.fd = -1
        self.chunk = b""
        if isinstance(source, (str, os.PathLike)):
            self.fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        else:
            self.chunk = bytes(source)
        head = self.look(0, SEGMENT_HEADER)
        # What is shorter holds no frame.
        self.seed = frame_seed(head) if head != NULL else 0

    def __dealloc__(self):
        if self.fd >= 0:
            os.close(self.fd)

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1
        self.chunk = b""
        self.chunk_at = 0

    def __iter__(self):
        return self

    cdef const uint8_t *look(self, size_t at, size_t n):
        """`n` bytes at offset `at`, valid until the next look; NULL when the file ends before."""
        cdef size_t held = <size_t> PyBytes_GET_SIZE(self.chunk)
        if at >= self.chunk_at and at + n <= self.chunk_at + held:
            return <const uint8_t *> PyBytes_AS_STRING(self.chunk) + (at - self.chunk_at)
        if self.fd < 0:
            return NULL
        self.chunk = os.pread(self.fd, max(n, CHUNK_BYTES), at)
        self.chunk_at = at
        held = <size_t> PyBytes_GET_SIZE(self.chunk)
        if n > held:
            return NULL
        return <const uint8_t *> PyBytes_AS_STRING(self.chunk)

    cdef int forget(self) except -1:
        if self.fd >= 0:
            self.chunk = b""
        return 0

    cdef str judge(self, size_t at, uint64_t *sequence, uint32_t *length):
        """Why no frame is at `at`: "end", "cut short", "length", "checksum", "order"; or "" with both values set."""
        cdef uint32_t crc
        cdef const uint8_t *p = self.look(at, 4)
        if p == NULL:
            return "end"
        memcpy(length, p, 4)
        if length[0] == 0:
            return "end"
        if length[0] > PAYLOAD_BYTES_MAX:
            return "length"
        p = self.look(at, FRAME_HEADER + length[0])
        if p == NULL:
            return "cut short"
        memcpy(length, p, 4)
        memcpy(&crc, p + 4, 4)
        memcpy(sequence, p + 8, 8)
        if length[0] == 0 or length[0] > PAYLOAD_BYTES_MAX or self.look(at, FRAME_HEADER + length[0]) == NULL:
            return "length"
        p = self.look(at, FRAME_HEADER + length[0])
        if crc != frame_crc(self.seed, sequence[0], p + FRAME_HEADER, length[0]):
            return "checksum"
        return "" if sequence[0] > self.sequence else "order"

    def __next__(self):
        cdef uint64_t sequence = 0
        cdef uint32_t length = 0
        cdef str cause = self.judge(self.offset, &sequence, &length)
        if cause:
            # What was read earlier may be stale, and a copy is not atomic against the writer: judge fresh bytes again.
            self.forget()
            cause = self.judge(self.offset, &sequence, &length)
        if cause:
            self.forget()
            self.damage = "" if cause == "end" else cause
            raise StopIteration
        self.damage = ""
        cdef const uint8_t *p = self.look(self.offset, FRAME_HEADER + length)
        self.offset += frame_bytes(length)
        self.sequence = sequence
        return sequence, (<const char *> p)[FRAME_HEADER:FRAME_HEADER + length]

    def resync(self):
        cdef size_t at = self.offset + 8
        cdef uint64_t sequence = 0
        cdef uint32_t length = 0
        cdef const uint8_t *p
        while True:
            p = self.look(at, FRAME_HEADER)
            if p == NULL:
                return False
            memcpy(&length, p, 4)
            memcpy(&sequence, p + 8, 8)
            if (0 < length <= PAYLOAD_BYTES_MAX and self.sequence < sequence < self.sequence + RESYNC_REACH
                    and not self.judge(at, &sequence, &length)):
                self.offset = at
                self.damage = ""
                return True
            at += 8


def read_frames(source, size_t from_offset=SEGMENT_HEADER):
    return Frames(source, from_offset)


def frame(bytes header not None, uint64_t sequence, bytes payload not None):
    cdef size_t n = len(payload)
    if len(header) != SEGMENT_HEADER:
        raise ValueError(f"a header has {<int> SEGMENT_HEADER} bytes, this has {len(header)}")
    if not 0 < n <= PAYLOAD_BYTES_MAX:
        raise ValueError(f"a payload has 1 to {PAYLOAD_BYTES_MAX} bytes, this has {n}")
    cdef bytearray room = bytearray(frame_bytes(n))
    frame_put(<uint8_t *> <char *> room, frame_bytes(n), frame_seed(<const uint8_t *> PyBytes_AS_STRING(header)),
              sequence, <const uint8_t *> PyBytes_AS_STRING(payload), n)
    return bytes(room)


def crc32c(bytes data, *, bint portable=False):
    if portable:
        return (~crc32c_portable(0xFFFFFFFF, <const uint8_t *> PyBytes_AS_STRING(data), len(data))) & 0xFFFFFFFF
    return (~crc32c_more(0xFFFFFFFF, PyBytes_AS_STRING(data), len(data))) & 0xFFFFFFFF


def gap_record(uint64_t first_sequence, uint64_t last_sequence, str cause):
    cdef uint8_t room[GAP_BYTES_MAX]
    cdef Out out
    cdef bytes text = cause.encode()[:CAUSE_BYTES_MAX].decode(errors="ignore").encode()
    out.p, out.n, out.cap, out.failed = room, 0, sizeof(room), 0
    cdef size_t start = out_open(&out, 2)
    out_uint(&out, 1, first_sequence)
    out_uint(&out, 2, last_sequence)
    out_bytes(&out, 3, PyBytes_AS_STRING(text), len(text))
    out_close(&out, start)
    return (<const char *> room)[:out.n]


cdef tuple _varint(bytes data, size_t at):
    """(value, next offset) of a varint of at most 10 bytes, or (None, at)."""
    cdef uint64_t value = 0
    cdef size_t i
    for i in range(10):
        if at + i >= <size_t> len(data):
            break
        value |= <uint64_t> (<uint8_t> data[at + i] & 0x7F) << (7 * i)
        if not <uint8_t> data[at + i] & 0x80:
            return value, at + i + 1
    return None, at


def gap_range(bytes payload):
    if len(payload) < 6 or payload[0] != 0x12:
        return None
    _, at = _varint(payload, 1)
    if payload[at:at + 1] != b"\x08":
        return None
    first, at = _varint(payload, at + 1)
    if first is None or payload[at:at + 1] != b"\x10":
        return None
    last, _ = _varint(payload, at + 1)
    return None if last is None else (first, last)
