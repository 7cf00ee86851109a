"""Linux: sockets, epoll, eventfd (sys/socket.h, sys/epoll.h, sys/eventfd.h)."""
from libc.stdint cimport uint32_t, uint64_t


cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    cdef struct ucred:
        int pid
        unsigned int uid
        unsigned int gid
    int AF_UNIX, SOL_SOCKET, SO_DOMAIN, SO_PEERCRED, SO_PEERGROUPS
    int SOCK_NONBLOCK, SOCK_CLOEXEC, SHUT_WR, MSG_NOSIGNAL
    int accept4(int fd, void *address, socklen_t *n, int flags)
    int getpeername(int fd, void *address, socklen_t *n)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *n)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t n)
    int shutdown(int fd, int how)
    ssize_t recv(int fd, void *buf, size_t n, int flags)
    ssize_t send(int fd, const void *buf, size_t n, int flags)


cdef extern from * nogil:
    """
    #ifndef SO_PEERPIDFD
    #define SO_PEERPIDFD 77
    #endif
    """
    int SO_PEERPIDFD         # Linux 6.5; older kernels answer ENOPROTOOPT


cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_TCP


cdef extern from "<netinet/tcp.h>" nogil:
    int TCP_NODELAY


cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    uint32_t EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLEXCLUSIVE
    int EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLL_CLOEXEC
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int op, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int n, int timeout_ms)


cdef extern from "<sys/eventfd.h>" nogil:
    int EFD_NONBLOCK, EFD_CLOEXEC
    int eventfd(unsigned int value, int flags)
    int eventfd_write(int fd, uint64_t value)
    int eventfd_read(int fd, uint64_t *value)
