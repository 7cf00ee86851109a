"""POSIX address text (arpa/inet.h)."""

cdef extern from "<sys/socket.h>" nogil:
    const int AF_INET, AF_INET6


cdef extern from "<arpa/inet.h>" nogil:
    ctypedef unsigned int socklen_t
    int inet_pton(int family, const char *text, void *address)
    const char *inet_ntop(int family, const void *address, char *text, socklen_t size)
