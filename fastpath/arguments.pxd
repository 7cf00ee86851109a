"""A call's arguments as `context.input`: JSON to Cedar values, typed by the shape that the schema declares.

Without a declared type: true and false are Bool, integers Long, other numbers decimal when they have at most four
digits behind the point and else String (also integers beyond 2^53, whose digits must not be lost), text String, objects
Record, arrays Set; null members are left out.
"""
from fastpath.image cimport Header
from fastpath.json_tree cimport Json
from fastpath.rows cimport Table
from fastpath.value cimport Arena, Cell
from fastpath.wire cimport Text
from libc.stdint cimport uint8_t, uint32_t


cpdef enum InputError:
    INPUT_OK = 0
    INPUT_TYPE = 1       # a member does not fit its declared type
    INPUT_MISSING = 2    # a member that the schema requires is not there
    INPUT_ROOM = 3       # the arena is full
    INPUT_VARIANT = 4    # a member is named like a declared one but for the case of letters


cdef struct InputFault:
    int error            # InputError
    Text name            # dotted name of the member as the schema declares it, in the arena


# The declared shape of context.input of action row `index`, or NULL.
cdef const Cell *input_shape(const Table *table, uint32_t index) noexcept nogil
# Build the cell of `json`; `shape` may be NULL. An InputError, with `fault` filled.
cdef int input_cell(const Json *json, const Cell *shape, Arena *arena, Cell *out, InputFault *fault) noexcept nogil
# SHA-256 over the canonical text of `json`. 0, or 1 when the arena has no room for that text.
cdef int input_digest(const Json *json, Arena *arena, uint8_t *out) noexcept nogil
