"""The slow lane of a door: calls that need Python leave a loop through a bounded table and come back by eventfd."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastpath.c.pthread cimport pthread_cond_t, pthread_mutex_t
from fastpath.wire cimport Text


cdef enum TicketState:
    TICKET_FREE = 0
    TICKET_ASKED = 1         # waits for Python
    TICKET_TAKEN = 2         # Python has it and may answer
    TICKET_ENDED = 3         # Python gave the last answer


cdef struct Ticket:          # one call in the lane; a loop and Python see it, under the lane's lock
    int state                # TicketState
    int gone                 # the stream is over
    int back                 # in the list of answers for its loop
    int loop                 # that waits for the answer
    uint32_t turn            # grows with each use, so that an old number names nothing
    const char *method       # static
    void *conn               # Conn * and Stream * of the loop; not to be touched once `gone`
    void *stream
    uint8_t *message         # owned
    uint32_t message_n
    uint8_t *answer          # owned, not fetched yet; NULL: none
    uint32_t answer_n
    int code                 # gRPC status that ends the call after the answer; -1: more may come
    uint32_t *share          # tickets of the peer, borrowed; not to be touched once `gone`
    Ticket *next             # of the calls for Python, or of the free ones
    Ticket *prev             # of the calls for Python
    Ticket *next_back


cdef struct Answer:          # what came back for a call
    void *conn
    void *stream
    uint8_t *p               # to be freed by who fetched it; NULL: only the status
    uint32_t n
    int code


cdef struct LaneTable:
    pthread_mutex_t lock
    pthread_cond_t waits     # something is in `first`
    Ticket *tickets          # owned, `room` of them
    uint32_t room
    Ticket *idle             # free ones
    Ticket *first            # for Python, oldest first
    Ticket *last
    Ticket **back            # owned, one list per loop
    int *wakes               # owned, an eventfd per loop, of the loops
    int loops
    int closed
    uint64_t asked           # calls that went in
    uint64_t full            # calls refused for want of room


cdef class Lane:
    cdef LaneTable table


# Send a call to Python (the message is copied); NULL when the table or the peer's share of it, `share` of `most`, is
# full, or memory is short.
cdef Ticket *lane_ask(LaneTable *lane, int loop, void *conn, void *stream, const char *method, Text message,
                      uint32_t *share, uint32_t most) noexcept nogil
# The stream is over: no answer for it is fetched after this.
cdef void lane_gone(LaneTable *lane, Ticket *ticket) noexcept nogil
# One answer for this loop; false when there is none.
cdef bint lane_fetch(LaneTable *lane, int loop, Answer *answer) noexcept nogil
