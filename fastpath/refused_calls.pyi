"""System calls that the process's seccomp filter refused."""

def catch() -> int:
    """Let a refused call return EPERM to whoever made it, and count it. A descriptor that is readable after one.

    The descriptor is an eventfd (eventfd(2)) for this process's whole life. OSError when the handler cannot be set.
    """

def counts() -> dict[int, int]:
    """{number of the system call: times that it was refused}."""
