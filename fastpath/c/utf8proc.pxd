"""utf8proc: normalisation form C."""
from libc.stdint cimport int32_t, uint8_t


cdef extern from "utf8proc.h" nogil:
    ctypedef int utf8proc_option_t
    utf8proc_option_t UTF8PROC_STABLE, UTF8PROC_COMPOSE
    # Code points into `buffer`; how many there are (more than bufsize: it did not fit), negative on bad UTF-8.
    ssize_t utf8proc_decompose(
        const uint8_t *text, ssize_t n, int32_t *buffer, ssize_t bufsize, utf8proc_option_t options
    )
    # Compose code points and write them as UTF-8 into the same buffer (one byte more for a NUL); its length in bytes.
    ssize_t utf8proc_reencode(int32_t *buffer, ssize_t length, utf8proc_option_t options)
