"""System calls that the process's seccomp filter refused."""

cdef int woken               # eventfd that is readable after one; -1 until `catch`
