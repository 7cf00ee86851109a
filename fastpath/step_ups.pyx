"""The newest STEP_UP answers (step_ups.pxd): a pool that all agents share, and none can take from another.

While there is room, everybody's answers stay. Then the oldest of whoever has most goes: one that provokes answer
after answer replaces its own, and with k agents at it each keeps a k-th.
"""
from fastpath.approved cimport make_digests
from fastpath.c.pthread cimport (
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_t,
    pthread_mutex_unlock,
)
from fastpath.columns cimport COL_CALL_DATA_LABELS, COL_CALL_DATA_LEVEL
from fastpath.live_state cimport CHAIN_MAX, EVALUATION_BYTES, TASK_ID_MAX, id_of
from fastpath.value cimport KIND_LONG, KIND_SET, KIND_STRING, Cell, cell_at, uid_type
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp, memcpy, memset

cdef enum:
    STEP_UPS = 1 << 9
    COUNTERS = 2 * STEP_UPS  # of agents, by hash; power of two
    NAME_BYTES = 256
    RESOURCE_BYTES = 1024
    TARGET_BYTES = 4096
    LABELS_BYTES = 4096


cdef struct Place:           # whose answer stands where, and since when; apart, since it is looked through
    uint64_t agent           # hash of the agent's uid
    uint64_t number          # of the answers so far; 0: free


cdef struct StepUp:          # texts longer than their room are cut; the digests are over the whole ones
    char evaluation[EVALUATION_BYTES]
    uint8_t digest[32]
    uint8_t class_digest[32]
    char task[TASK_ID_MAX]
    char reason[NAME_BYTES]
    char agent[NAME_BYTES]
    char action[NAME_BYTES]
    char resource_type[NAME_BYTES]
    char resource[RESOURCE_BYTES]
    char destination[RESOURCE_BYTES]
    char method[NAME_BYTES]
    char http_method[NAME_BYTES]
    char target[TARGET_BYTES]            # path and query as sent
    char chain[CHAIN_MAX * NAME_BYTES]   # NUL-separated
    uint32_t chain_bytes
    char labels[LABELS_BYTES]            # NUL-separated
    uint32_t labels_bytes
    int64_t level
    int64_t cost
    int64_t unix_ns
    uint64_t generation
    uint8_t cut
    uint8_t unseen
    uint8_t emergency


cdef struct StepUps:
    pthread_mutex_t lock     # not the state's: calls of others do not wait for what is copied here
    uint64_t number
    Place places[STEP_UPS]
    StepUp rows[STEP_UPS]


cdef void *step_ups_new() noexcept nogil:
    cdef StepUps *made = <StepUps *> calloc(1, sizeof(StepUps))
    if made != NULL and pthread_mutex_init(&made.lock, NULL):
        free(made)
        return NULL
    return made


cdef void step_ups_free(void *step_ups) noexcept nogil:
    if step_ups != NULL:
        pthread_mutex_destroy(&(<StepUps *> step_ups).lock)
        free(step_ups)


# ---------------------------------------------------------------- whose answer goes


cdef inline uint32_t counter_of(uint64_t agent, const uint64_t *agents, const uint16_t *counts) noexcept nogil:
    """The counter of an agent, or the free one for it: there are twice as many as places, so every probe ends."""
    cdef uint32_t at = <uint32_t> agent & (COUNTERS - 1)
    while counts[at] and agents[at] != agent:
        at = (at + 1) & (COUNTERS - 1)
    return at


cdef uint32_t oldest_of_most(const StepUps *all_) noexcept nogil:
    """The oldest answer of an agent that has as many as any."""
    cdef uint64_t agents[COUNTERS]
    cdef uint16_t counts[COUNTERS]
    cdef uint16_t most = 0
    cdef uint32_t found = 0
    cdef uint64_t oldest = <uint64_t> -1
    cdef uint32_t i, at
    memset(counts, 0, sizeof(counts))
    for i in range(<uint32_t> STEP_UPS):
        at = counter_of(all_.places[i].agent, agents, counts)
        agents[at] = all_.places[i].agent
        counts[at] += 1
        most = max(most, counts[at])
    for i in range(<uint32_t> STEP_UPS):
        at = counter_of(all_.places[i].agent, agents, counts)
        if counts[at] == most and all_.places[i].number < oldest:
            oldest, found = all_.places[i].number, i
    return found


cdef StepUp *place_for(StepUps *all_, uint64_t agent) noexcept nogil:
    cdef uint32_t at = 0
    while at < <uint32_t> STEP_UPS and all_.places[at].number:
        at += 1
    if at == <uint32_t> STEP_UPS:
        at = oldest_of_most(all_)
    all_.number += 1
    all_.places[at].agent, all_.places[at].number = agent, all_.number
    return &all_.rows[at]


# ---------------------------------------------------------------- writing one


cdef void put_text(char *room, uint32_t cap, Text text, uint8_t *cut) noexcept nogil:
    """NUL-terminated, cut to its room or where it holds a NUL."""
    cdef uint32_t n = min(cap - 1, text.n)
    cdef const char *nul = <const char *> memchr(text.p, 0, n) if n else NULL
    if nul != NULL:
        n = <uint32_t> (nul - text.p)
    cut[0] |= n < text.n
    if n:
        memcpy(room, text.p, n)
    room[n] = 0


cdef void put_labels(StepUp *slot, const Cell *labels) noexcept nogil:
    cdef const Cell *label
    cdef uint32_t i
    if labels.kind != KIND_SET:
        return
    for i in range(labels.n):
        label = <const Cell *> cell_at(labels) + i
        if label.kind != KIND_STRING or label.n + 1 > LABELS_BYTES - slot.labels_bytes:
            slot.cut = 1
            return
        memcpy(slot.labels + slot.labels_bytes, cell_at(label), label.n)
        slot.labels_bytes += label.n + 1


cdef void fill(
    StepUp *slot, const Request *request, const char *evaluation, Text reason, bint emergency, const Standing *standing
) noexcept nogil:
    cdef const Cell *level = request.columns + <int> COL_CALL_DATA_LEVEL
    cdef Text type_
    cdef uint32_t i
    memset(slot, 0, sizeof(StepUp))
    memcpy(slot.evaluation, evaluation, EVALUATION_BYTES)
    memcpy(slot.digest, standing.digest, 32)
    memcpy(slot.class_digest, standing.class_digest, 32)
    put_text(slot.task, TASK_ID_MAX, standing.task, &slot.cut)
    put_text(slot.reason, NAME_BYTES, reason, &slot.cut)
    put_text(slot.agent, NAME_BYTES, id_of(request.principal), &slot.cut)
    put_text(slot.action, NAME_BYTES, id_of(request.action), &slot.cut)
    type_.p, type_.n = uid_type(request.resource), request.resource.type_len
    put_text(slot.resource_type, NAME_BYTES, type_, &slot.cut)
    put_text(slot.resource, RESOURCE_BYTES, id_of(request.resource), &slot.cut)
    put_text(slot.destination, RESOURCE_BYTES, request.destination, &slot.cut)
    put_text(slot.method, NAME_BYTES, request.method, &slot.cut)
    put_text(slot.http_method, NAME_BYTES, request.content.method, &slot.cut)
    put_text(slot.target, TARGET_BYTES, request.content.target, &slot.cut)
    for i in range(standing.chain_count):
        put_text(slot.chain + slot.chain_bytes, NAME_BYTES, standing.chain[i], &slot.cut)
        slot.chain_bytes += min(<uint32_t> NAME_BYTES - 1, standing.chain[i].n) + 1
    put_labels(slot, request.columns + <int> COL_CALL_DATA_LABELS)
    slot.level = level.v if level.kind == KIND_LONG else 0
    slot.cost = request.cost
    slot.unseen = not request.content.seen
    slot.unix_ns = standing.unix_ns
    slot.generation = standing.generation
    slot.emergency = emergency


cdef void authority_note_step_up(
    LiveState *live, const Request *request, const char *evaluation, Text reason, bint emergency, Arena *arena,
    Standing *standing
) noexcept nogil:
    cdef StepUps *all_ = <StepUps *> live.step_ups
    if not make_digests(request, arena, standing):
        return
    pthread_mutex_lock(&all_.lock)
    fill(place_for(all_, request.principal.hash), request, evaluation, reason, emergency, standing)
    pthread_mutex_unlock(&all_.lock)


# ---------------------------------------------------------------- reading one


cdef bint copy_of(StepUps *all_, const char *evaluation, StepUp *out) noexcept nogil:
    cdef bint found = False
    cdef uint32_t i
    pthread_mutex_lock(&all_.lock)
    for i in range(<uint32_t> STEP_UPS):
        if all_.places[i].number and memcmp(all_.rows[i].evaluation, evaluation, EVALUATION_BYTES) == 0:
            out[0] = all_.rows[i]
            found = True
            break
    pthread_mutex_unlock(&all_.lock)
    return found


cdef object step_up_of(const LiveState *live, bytes evaluation):
    cdef StepUp *copy
    if len(evaluation) != EVALUATION_BYTES:
        return None
    copy = <StepUp *> calloc(1, sizeof(StepUp))
    if copy == NULL:
        raise MemoryError
    try:
        return plain(copy) if copy_of(<StepUps *> live.step_ups, evaluation, copy) else None
    finally:
        free(copy)


cdef dict plain(StepUp *row):
    return {
        "digest": row.digest[:32], "class_digest": row.class_digest[:32],
        "task": row.task.decode("utf-8", "replace"), "reason": row.reason.decode("utf-8", "replace"),
        "agent": row.agent.decode("utf-8", "replace"), "action": row.action.decode("utf-8", "replace"),
        "resource_type": row.resource_type.decode("utf-8", "replace"),
        "resource": row.resource.decode("utf-8", "replace"),
        "destination": row.destination.decode("utf-8", "replace"), "method": row.method.decode("utf-8", "replace"),
        "chain": [hop.decode("utf-8", "replace") for hop in row.chain[:row.chain_bytes].split(b"\0") if hop],
        "http_method": row.http_method.decode("utf-8", "replace"), "target": row.target.decode("utf-8", "replace"),
        "data_labels": [one.decode("utf-8", "replace") for one in row.labels[:row.labels_bytes].split(b"\0") if one],
        "cost": row.cost, "content_unseen": bool(row.unseen), "data_level": row.level,
        "unix_ns": row.unix_ns, "generation": row.generation, "truncated": bool(row.cut),
        "emergency_only": bool(row.emergency),
    }
