"""POSIX address text (arpa/inet.h)."""

from libc.stdint cimport uint8_t, uint32_t

cdef extern from "<sys/socket.h>" nogil:
    const int AF_INET, AF_INET6


cdef extern from "<netinet/in.h>" nogil:
    cdef struct in_addr:
        uint32_t s_addr
    cdef struct in6_addr:
        uint8_t s6_addr[16]
    cdef struct sockaddr_in:
        in_addr sin_addr
    cdef struct sockaddr_in6:
        unsigned short sin6_family
        in6_addr sin6_addr


cdef extern from "<arpa/inet.h>" nogil:
    ctypedef unsigned int socklen_t
    int inet_pton(int family, const char *text, void *address)
    const char *inet_ntop(int family, const void *address, char *text, socklen_t size)
