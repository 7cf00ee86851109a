"""A verified caller as a Python object that owns the memory of one Peer."""
from fastpath.decide cimport Peer


cdef class VerifiedPeer:
    cdef Peer peer
    cdef bytes _spiffe_id
    cdef bytes _credential
    cdef bytes _refusal
