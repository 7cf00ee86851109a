"""See elements.pyi."""


def skip_elements(str text not None, Py_ssize_t at, Py_ssize_t count_max, Py_ssize_t chars_max):
    cdef Py_ssize_t start = at
    cdef Py_ssize_t size = len(text)
    cdef Py_ssize_t found = 0
    cdef Py_ssize_t depth = 0
    cdef bint blank = True
    cdef Py_UCS4 one
    while at < size:
        one = text[at]
        if one == c'"':
            at = _string_end(text, at + 1, size)
            blank = False
        elif one == c"," and depth == 0:
            found += 1
            if found >= count_max or at - start >= chars_max:
                return at, found, at + 1
            blank = True
        elif one in (c"]", c"}"):
            if depth == 0:
                return at, found + (not blank), -1
            depth -= 1
        else:
            if one in (c"[", c"{"):
                depth += 1
            blank = blank and one in (c" ", c"\t", c"\n", c"\r")
        at += 1
    return size, found + (not blank), -2


cdef inline Py_ssize_t _string_end(str text, Py_ssize_t at, Py_ssize_t size):
    """Where the quote that ends a string stands, or the end of the text."""
    cdef Py_UCS4 one
    while at < size:
        one = text[at]
        if one == c'"':
            return at
        at += 2 if one == c"\\" else 1
    return at
