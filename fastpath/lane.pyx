"""The slow lane: a table of tickets between the loops of a door, which never wait, and Python, which may be busy.

A ticket is taken when a call goes in and given back when both sides are done with it, so the table bounds what waits,
what is being answered and what streams. A loop only ever tries: a table without room is an error to the caller.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from fastpath.c.linux cimport eventfd_write
from fastpath.c.pthread cimport (
    pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init, pthread_cond_signal, pthread_cond_wait,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)

cdef enum:
    TURN_BITS = 32


cdef class Lane:

    def __cinit__(self, int loops, uint32_t room):
        cdef uint32_t i
        if pthread_mutex_init(&self.table.lock, NULL) or pthread_cond_init(&self.table.waits, NULL):
            raise MemoryError
        self.table.loops, self.table.room = loops, max(<uint32_t> 1, room)
        self.table.tickets = <Ticket *> calloc(self.table.room, sizeof(Ticket))
        self.table.back = <Ticket **> calloc(loops, sizeof(Ticket *))
        self.table.wakes = <int *> calloc(loops, sizeof(int))
        if self.table.tickets == NULL or self.table.back == NULL or self.table.wakes == NULL:
            raise MemoryError
        for i in range(self.table.room):
            self.table.tickets[i].next = self.table.idle
            self.table.idle = &self.table.tickets[i]

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.table.room if self.table.tickets != NULL else 0):
            free(self.table.tickets[i].message)
            free(self.table.tickets[i].answer)
        free(self.table.tickets)
        free(self.table.back)
        free(self.table.wakes)
        pthread_cond_destroy(&self.table.waits)
        pthread_mutex_destroy(&self.table.lock)

    def take(self):
        cdef Ticket *ticket
        cdef bint gone
        cdef uint64_t number
        cdef const char *method
        with nogil:
            pthread_mutex_lock(&self.table.lock)
            ticket = _next(&self.table)
            while ticket == NULL and not self.table.closed:
                pthread_cond_wait(&self.table.waits, &self.table.lock)
                ticket = _next(&self.table)
            gone = ticket != NULL and ticket.gone
            if ticket != NULL:
                number = (<uint64_t> ticket.turn << TURN_BITS) | <uint64_t> (ticket - self.table.tickets)
                method = ticket.method
                ticket.state = TICKET_TAKEN
            if gone:
                _give_back(&self.table, ticket)
            pthread_mutex_unlock(&self.table.lock)
        if ticket == NULL:
            return None
        # INVARIANT (taker): one thread takes, and it alone gives back what it took, so the message stays meanwhile.
        return number, (<bytes> method).decode(), (
            None if gone else PyBytes_FromStringAndSize(<char *> ticket.message, ticket.message_n))

    def answer(self, uint64_t number, message=None, int code=-1):
        cdef uint8_t *copy = NULL
        cdef uint32_t n = 0
        cdef Ticket *ticket
        cdef int wake = -1
        cdef const char *p
        if message is not None:
            p, n = message, <uint32_t> len(message)
            copy = <uint8_t *> malloc(max(<uint32_t> 1, n))
            if copy == NULL:
                raise MemoryError
            memcpy(copy, p, n)
        pthread_mutex_lock(&self.table.lock)
        ticket = _named(&self.table, number)
        if ticket != NULL:
            # A newer answer takes the place of one that was not fetched: a caller that lags gets the latest.
            ticket.answer, copy = copy, ticket.answer
            ticket.answer_n, ticket.code = n, code
            if not ticket.back:
                ticket.back = 1
                ticket.next_back = self.table.back[ticket.loop]
                self.table.back[ticket.loop] = ticket
            wake = self.table.wakes[ticket.loop]
            if code >= 0:
                ticket.state = TICKET_ENDED
        pthread_mutex_unlock(&self.table.lock)
        free(copy)
        if wake >= 0:
            eventfd_write(wake, 1)
        return ticket != NULL

    def waiting(self):
        cdef Ticket *ticket
        cdef int n = 0
        pthread_mutex_lock(&self.table.lock)
        ticket = self.table.first
        while ticket != NULL:
            n += 1
            ticket = ticket.next
        pthread_mutex_unlock(&self.table.lock)
        return n

    def close(self):
        pthread_mutex_lock(&self.table.lock)
        self.table.closed = 1
        pthread_cond_broadcast(&self.table.waits)
        pthread_mutex_unlock(&self.table.lock)


# ---------------------------------------------------------------- under the lock

cdef Ticket *_named(LaneTable *lane, uint64_t number) noexcept nogil:
    """The ticket that Python has under this number, or NULL."""
    cdef uint32_t i = <uint32_t> number
    if i >= lane.room or lane.tickets[i].turn != <uint32_t> (number >> TURN_BITS):
        return NULL
    return &lane.tickets[i] if lane.tickets[i].state == TICKET_TAKEN and not lane.tickets[i].gone else NULL


cdef Ticket *_next(LaneTable *lane) noexcept nogil:
    """The oldest ticket for Python, or NULL."""
    cdef Ticket *ticket = lane.first
    if ticket != NULL:
        _unlink(lane, ticket)
    return ticket


cdef void _unlink(LaneTable *lane, Ticket *ticket) noexcept nogil:
    if ticket.prev != NULL:
        ticket.prev.next = ticket.next
    else:
        lane.first = ticket.next
    if ticket.next != NULL:
        ticket.next.prev = ticket.prev
    else:
        lane.last = ticket.prev


cdef void _for_python(LaneTable *lane, Ticket *ticket) noexcept nogil:
    ticket.next, ticket.prev = NULL, lane.last
    if lane.last != NULL:
        lane.last.next = ticket
    else:
        lane.first = ticket
    lane.last = ticket
    pthread_cond_signal(&lane.waits)


cdef void _give_back(LaneTable *lane, Ticket *ticket) noexcept nogil:
    """Free the ticket. Its message stays until the next use: who took it may still be reading."""
    free(ticket.answer)
    ticket.answer = NULL
    ticket.state = TICKET_FREE
    ticket.turn += 1
    ticket.next = lane.idle
    lane.idle = ticket


cdef void _not_back(LaneTable *lane, Ticket *ticket) noexcept nogil:
    cdef Ticket **at = &lane.back[ticket.loop]
    if not ticket.back:
        return
    while at[0] != ticket:
        at = &at[0].next_back
    at[0] = ticket.next_back
    ticket.back = 0


# ---------------------------------------------------------------- for the loops

cdef Ticket *lane_ask(LaneTable *lane, int loop, void *conn, void *stream, const char *method, Text message,
                      uint32_t *share, uint32_t most) noexcept nogil:
    cdef Ticket *ticket
    cdef uint8_t *copy = <uint8_t *> malloc(max(<uint32_t> 1, message.n))
    if copy == NULL:
        return NULL
    memcpy(copy, message.p, message.n)
    pthread_mutex_lock(&lane.lock)
    ticket = lane.idle
    if ticket == NULL or lane.closed or share[0] >= most:
        lane.full += 1
        pthread_mutex_unlock(&lane.lock)
        free(copy)
        return NULL
    lane.idle = ticket.next
    lane.asked += 1
    free(ticket.message)
    ticket.message, ticket.message_n = copy, message.n
    ticket.state, ticket.gone, ticket.code = TICKET_ASKED, 0, -1
    ticket.loop, ticket.method = loop, method
    ticket.conn, ticket.stream, ticket.share = conn, stream, share
    share[0] += 1
    _for_python(lane, ticket)
    pthread_mutex_unlock(&lane.lock)
    return ticket


cdef void lane_gone(LaneTable *lane, Ticket *ticket) noexcept nogil:
    pthread_mutex_lock(&lane.lock)
    _not_back(lane, ticket)
    ticket.gone = 1
    ticket.share[0] -= 1
    if ticket.state == TICKET_TAKEN:
        _for_python(lane, ticket)
    else:
        if ticket.state == TICKET_ASKED:
            _unlink(lane, ticket)
        _give_back(lane, ticket)
    pthread_mutex_unlock(&lane.lock)


cdef bint lane_fetch(LaneTable *lane, int loop, Answer *answer) noexcept nogil:
    cdef Ticket *ticket
    pthread_mutex_lock(&lane.lock)
    ticket = lane.back[loop]
    if ticket != NULL:
        lane.back[loop] = ticket.next_back
        ticket.back = 0
        answer.conn, answer.stream = ticket.conn, ticket.stream
        answer.p, answer.n, answer.code = ticket.answer, ticket.answer_n, ticket.code
        ticket.answer = NULL
    pthread_mutex_unlock(&lane.lock)
    return ticket != NULL
