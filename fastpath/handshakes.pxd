"""Connections of a loop in the TLS handshake, oldest first: nobody knows yet whose they are.

They have a bound of their own, where the oldest makes room for the next: a handshake takes milliseconds, so it is the
strangers who fill a door that lose their place, and who has shown a credential keeps its own.
"""
from fastpath.http2 cimport Conn
from fastpath.wire cimport Text
from libc.stdint cimport uint32_t
from libc.string cimport memcmp


cdef struct Handshakes:
    Conn *first
    Conn *last
    uint32_t count


cdef inline void handshakes_add(Handshakes *all, Conn *conn) noexcept nogil:
    conn.shaking = 1
    conn.shaking_prev, conn.shaking_next = all.last, NULL
    if all.last != NULL:
        all.last.shaking_next = conn
    else:
        all.first = conn
    all.last = conn
    all.count += 1


cdef inline void handshakes_drop(Handshakes *all, Conn *conn) noexcept nogil:
    if not conn.shaking:
        return
    conn.shaking = 0
    if conn.shaking_prev != NULL:
        conn.shaking_prev.shaking_next = conn.shaking_next
    else:
        all.first = conn.shaking_next
    if conn.shaking_next != NULL:
        conn.shaking_next.shaking_prev = conn.shaking_prev
    else:
        all.last = conn.shaking_prev
    all.count -= 1


cdef inline Conn *handshakes_oldest_of(Handshakes *all, Text address) noexcept nogil:
    """The oldest one from this address, or NULL."""
    cdef Conn *conn = all.first
    while conn != NULL:
        if conn.peer.credential.n == address.n and memcmp(conn.peer.credential.p, address.p, address.n) == 0:
            return conn
        conn = conn.shaking_next
    return NULL
