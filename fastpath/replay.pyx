"""Repeated requests (at-most-once counting for callers that retry).

A small set-associative store in native memory: bounded, never grows, forgets after REPLAY_WINDOW_NS or when its set is
needed. Forgetting is safe: the call is then decided again, as a new one.
"""
from fastpath.live_state cimport LiveState
from fastpath.spending cimport Grounds, authority_holds
from fastpath.wire cimport Out, out_raw

from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_mutex_destroy(pthread_mutex_t *)

cdef enum:
    SETS = 512               # power of two
    WAYS = 4
    REPLY_MAX = 1536         # bytes; a longer answer is not remembered

cdef int64_t REPLAY_WINDOW_NS = 60 * 1000000000

cdef enum State:
    EMPTY = 0
    PENDING = 1
    ANSWERED = 2


cdef struct Entry:
    ReplayKey key
    int64_t until_ns
    uint32_t state
    uint32_t n
    Grounds grounds
    uint8_t reply[REPLY_MAX]


cdef struct Store:
    pthread_mutex_t lock
    Entry entries[SETS * WAYS]


cdef Entry *_set_of(Store *store, const ReplayKey *key) noexcept nogil:
    cdef uint32_t at
    memcpy(&at, key.caller, 4)
    return &store.entries[(at & (SETS - 1)) * WAYS]


cdef Entry *_find(Entry *entries, const ReplayKey *key) noexcept nogil:
    cdef int i
    for i in range(WAYS):
        if entries[i].state != EMPTY and memcmp(entries[i].key.caller, key.caller, 32) == 0:
            return &entries[i]
    return NULL


cdef Entry *_pending(Store *store, const ReplayKey *key) noexcept nogil:
    """The entry that this very call opened, or NULL: a later call with other authority may have taken it over."""
    cdef Entry *entry = _find(_set_of(store, key), key)
    if entry == NULL or entry.state != PENDING or memcmp(&entry.key, key, sizeof(ReplayKey)) != 0:
        return NULL
    return entry


cdef Entry *_victim(Entry *entries, int64_t now_ns) noexcept nogil:
    """The entry to take over: empty or expired, else the answered one that ends first; NULL when all are pending."""
    cdef Entry *oldest = NULL
    cdef int i
    for i in range(WAYS):
        if entries[i].state == EMPTY or entries[i].until_ns <= now_ns:
            return &entries[i]
        if entries[i].state == ANSWERED and (oldest == NULL or entries[i].until_ns < oldest.until_ns):
            oldest = &entries[i]
    return oldest


cdef bint _holds(const Entry *entry, const ReplayKey *key, int64_t now_ns) noexcept nogil:
    """Whether what decided the earlier answer is still in force."""
    return (entry.until_ns > now_ns and entry.key.generation == key.generation and entry.key.epoch == key.epoch
            and entry.key.changes == key.changes and entry.key.revision == key.revision)


cdef int _begin(Store *store, const ReplayKey *key, int64_t now_ns, LiveState *live, Out *reply) noexcept nogil:
    cdef Entry *entries = _set_of(store, key)
    cdef Entry *entry = _find(entries, key)
    if entry != NULL and _holds(entry, key, now_ns):
        if memcmp(entry.key.content, key.content, 32) != 0:
            return REPLAY_REUSED
        if entry.state == PENDING:
            return REPLAY_PENDING
        if authority_holds(live, &entry.grounds):
            out_raw(reply, entry.reply, entry.n)
            return REPLAY_ANSWERED
    if entry == NULL:
        entry = _victim(entries, now_ns)
    if entry == NULL:
        return REPLAY_UNTRACKED
    memcpy(&entry.key, key, sizeof(ReplayKey))
    entry.state = PENDING
    entry.until_ns = now_ns + REPLAY_WINDOW_NS
    return REPLAY_NEW


cdef class Replay:
    """The remembered answers of one sidecar."""

    def __cinit__(self):
        self.memory = calloc(1, sizeof(Store))
        if self.memory == NULL:
            raise MemoryError
        pthread_mutex_init(&(<Store *> self.memory).lock, NULL)

    def __dealloc__(self):
        if self.memory != NULL:
            pthread_mutex_destroy(&(<Store *> self.memory).lock)
            free(self.memory)
            self.memory = NULL

    cdef int begin(self, const ReplayKey *key, int64_t now_ns, LiveState *live, Out *reply) noexcept nogil:
        cdef Store *store = <Store *> self.memory
        cdef int found
        pthread_mutex_lock(&store.lock)
        found = _begin(store, key, now_ns, live, reply)
        pthread_mutex_unlock(&store.lock)
        return found

    cdef void answer(self, const ReplayKey *key, const Grounds *grounds, const Out *reply) noexcept nogil:
        cdef Store *store = <Store *> self.memory
        cdef Entry *entry
        pthread_mutex_lock(&store.lock)
        entry = _pending(store, key)
        if entry != NULL:
            if reply.failed or reply.n > REPLY_MAX:
                entry.state = EMPTY
            else:
                memcpy(entry.reply, reply.p, reply.n)
                entry.n = <uint32_t> reply.n
                entry.grounds = grounds[0]
                entry.state = ANSWERED
        pthread_mutex_unlock(&store.lock)

    cdef void forget(self, const ReplayKey *key) noexcept nogil:
        cdef Store *store = <Store *> self.memory
        cdef Entry *entry
        pthread_mutex_lock(&store.lock)
        entry = _pending(store, key)
        if entry != NULL:
            entry.state = EMPTY
        pthread_mutex_unlock(&store.lock)


# ---------------------------------------------------------------- Python face


def play(list steps):
    """What each step finds: the test partner of `begin`, `answer` and `forget`.

    A step is (verb, caller's letter, content's letter, generation, seconds, answer); `begin` gives (found, the
    remembered answer), the others None.
    """
    cdef Replay store = Replay()
    cdef ReplayKey key
    cdef Grounds nothing
    cdef bytearray room = bytearray(REPLY_MAX)
    cdef bytes said
    cdef Out out
    memset(&nothing, 0, sizeof(nothing))
    found = []
    for verb, caller, content, generation, seconds, answer in steps:
        memset(&key, 0, sizeof(ReplayKey))
        memset(key.caller, <int> ord(caller), sizeof(key.caller))
        memset(key.content, <int> ord(content), sizeof(key.content))
        key.generation = generation
        said = answer
        out.p, out.n, out.cap, out.failed = <uint8_t *> <char *> room, 0, REPLY_MAX, 0
        if verb == "begin":
            state = store.begin(&key, <int64_t> seconds * 1000000000, NULL, &out)
            found.append((state, bytes(room[:out.n])))
            continue
        out_raw(&out, <const char *> said, len(said))
        if verb == "answer":
            store.answer(&key, &nothing, &out)
        else:
            store.forget(&key)
        found.append(None)
    return found
