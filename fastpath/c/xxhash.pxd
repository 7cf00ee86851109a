"""xxHash 0.8: the 64-bit XXH3 of uids and type names."""
from libc.stdint cimport uint64_t


cdef extern from "xxhash.h" nogil:
    ctypedef uint64_t XXH64_hash_t
    XXH64_hash_t XXH3_64bits(const void *data, size_t len)
    XXH64_hash_t XXH3_64bits_withSeed(const void *data, size_t len, XXH64_hash_t seed)
