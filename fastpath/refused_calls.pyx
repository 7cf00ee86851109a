"""The SIGSYS handler of a process under a seccomp filter: the call returns EPERM, is counted, and a reader is woken.

The kernel sends SIGSYS to the very thread that made the call (SECCOMP_RET_TRAP, seccomp(2)), in the middle of it, with
or without the GIL: what runs here is safe in a signal handler (signal-safety(7)) and never waits.
"""
from fastpath.c.linux cimport EFD_CLOEXEC, eventfd, eventfd_write
from libc.errno cimport EPERM, errno
from libc.stdint cimport uint64_t

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <signal.h>
    #include <ucontext.h>
    #ifndef SYS_SECCOMP
    #define SYS_SECCOMP 1
    #endif
    #define REMIT_CALLS 1024
    static uint64_t remit_refused[REMIT_CALLS];
    static inline int remit_call_of(const siginfo_t *info) { return info->si_syscall; }
    static inline void remit_count(int call) { __atomic_fetch_add(&remit_refused[call], 1, __ATOMIC_RELAXED); }
    static inline uint64_t remit_counted(int call) { return __atomic_load_n(&remit_refused[call], __ATOMIC_RELAXED); }
    static inline void remit_return(void *context, long value) {
    #if defined(__x86_64__)
        ((ucontext_t *) context)->uc_mcontext.gregs[REG_RAX] = value;
    #elif defined(__aarch64__)
        ((ucontext_t *) context)->uc_mcontext.regs[0] = (unsigned long) value;
    #else
    #error "the register of a system call's result is not known for this processor"
    #endif
    }
    static int remit_catch(void (*handler)(int, siginfo_t *, void *)) {
        struct sigaction action = {0};
        action.sa_sigaction = handler;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigemptyset(&action.sa_mask);
        return sigaction(SIGSYS, &action, NULL);
    }
    static inline void remit_errno(int value) { errno = value; }
    static inline void remit_die(void) { signal(SIGSYS, SIG_DFL); raise(SIGSYS); }
    """
    ctypedef struct siginfo_t:
        int si_code
    int SYS_SECCOMP
    int CALLS "REMIT_CALLS"  # numbers that are counted apart; the last one stands for all above
    int remit_call_of(const siginfo_t *info)
    void remit_count(int call)
    uint64_t remit_counted(int call)
    void remit_return(void *context, long value)
    int remit_catch(void (*handler)(int, siginfo_t *, void *) noexcept nogil)
    void remit_errno(int value)
    void remit_die()

woken = -1


cdef void _refused(int number, siginfo_t *info, void *context) noexcept nogil:
    cdef int kept = errno
    cdef int call
    if info.si_code != SYS_SECCOMP:
        # Somebody sent the signal: it ends the process, as it does without us.
        remit_die()
        return
    call = remit_call_of(info)
    remit_count(call if 0 <= call < CALLS else CALLS - 1)
    remit_return(context, -EPERM)
    eventfd_write(woken, 1)
    remit_errno(kept)


def catch():
    global woken
    if woken < 0:
        woken = eventfd(0, EFD_CLOEXEC)
    if woken < 0 or remit_catch(_refused):
        raise OSError(errno, "the handler of refused system calls cannot be set")
    return woken


def counts():
    cdef int i
    return {i: remit_counted(i) for i in range(CALLS) if remit_counted(i)}
