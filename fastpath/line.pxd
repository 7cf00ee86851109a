"""Connections in a line, first come first: they are put at its end, and leave from wherever they stand.

A connection has a Place for each line that it may stand in.
"""
from libc.stdint cimport uint32_t


cdef struct Place:
    Place *before
    Place *behind
    void *conn               # Conn * whose place it is, set once
    int taken                # it stands in the line


cdef struct Line:
    Place *first
    Place *last
    uint32_t count


cdef inline void line_add(Line *line, Place *place) noexcept nogil:
    """To the end, unless it stands there already."""
    if place.taken:
        return
    place.taken = 1
    place.before, place.behind = line.last, NULL
    if line.last != NULL:
        line.last.behind = place
    else:
        line.first = place
    line.last = place
    line.count += 1


cdef inline void line_drop(Line *line, Place *place) noexcept nogil:
    if not place.taken:
        return
    place.taken = 0
    if place.before != NULL:
        place.before.behind = place.behind
    else:
        line.first = place.behind
    if place.behind != NULL:
        place.behind.before = place.before
    else:
        line.last = place.before
    line.count -= 1
