"""Parsers and methods of Cedar's extension types, equal to Cedar's own in what they accept."""
from fastpath.value cimport Ip
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memchr, memcmp, memcpy, memset

cdef extern from *:
    """
    #define remit_add(a, b, out) __builtin_add_overflow((int64_t) (a), (int64_t) (b), (int64_t *) (out))
    #define remit_sub(a, b, out) __builtin_sub_overflow((int64_t) (a), (int64_t) (b), (int64_t *) (out))
    #define remit_mul(a, b, out) __builtin_mul_overflow((int64_t) (a), (int64_t) (b), (int64_t *) (out))
    """
    int remit_add(int64_t a, int64_t b, int64_t *out) nogil
    int remit_sub(int64_t a, int64_t b, int64_t *out) nogil
    int remit_mul(int64_t a, int64_t b, int64_t *out) nogil

cdef enum:
    DAY_MS = 86400000
    FRACTION_DIGITS = 4


cdef int long_add(int64_t a, int64_t b, int64_t *out) noexcept nogil:
    return remit_add(a, b, out)


cdef int long_sub(int64_t a, int64_t b, int64_t *out) noexcept nogil:
    return remit_sub(a, b, out)


cdef int long_mul(int64_t a, int64_t b, int64_t *out) noexcept nogil:
    return remit_mul(a, b, out)


cdef struct Cursor:          # what is left of a text
    const char *p
    const char *end


cdef inline bint is_digit(char c) noexcept nogil:
    return c'0' <= c <= c'9'


cdef inline bint take(Cursor *at, char c) noexcept nogil:
    if at.p < at.end and at.p[0] == c:
        at.p += 1
        return True
    return False


cdef bint take_fixed(Cursor *at, int digits, int *out) noexcept nogil:
    """Exactly `digits` decimal digits."""
    cdef int i
    out[0] = 0
    if at.end - at.p < digits:
        return False
    for i in range(digits):
        if not is_digit(at.p[i]):
            return False
        out[0] = 10 * out[0] + (at.p[i] - c'0')
    at.p += digits
    return True


cdef int take_number(Cursor *at, bint negative, int64_t *out) noexcept nogil:
    """One or more digits as an i64 of the given sign: 0, or 1 when there are none or they do not fit."""
    cdef const char *start = at.p
    cdef int digit
    cdef int bad = 0
    out[0] = 0
    while at.p < at.end and is_digit(at.p[0]):
        digit = at.p[0] - c'0'
        bad |= remit_mul(out[0], 10, out)
        bad |= remit_sub(out[0], digit, out) if negative else remit_add(out[0], digit, out)
        at.p += 1
    return bad or at.p == start


# ---------------------------------------------------------------- decimal


cdef int decimal_parse(const char *p, uint32_t n, int64_t *out) noexcept nogil:
    """-?digits.digits with one to four digits behind the point."""
    cdef Cursor at
    cdef bint negative
    cdef int64_t whole, fraction
    cdef int digits
    at.p, at.end = p, p + n
    negative = take(&at, c'-')
    if take_number(&at, negative, &whole) or not take(&at, c'.'):
        return 1
    digits = <int> (at.end - at.p) if at.end - at.p <= FRACTION_DIGITS else 0
    if digits == 0 or take_number(&at, negative, &fraction) or at.p != at.end:
        return 1
    while digits < FRACTION_DIGITS:
        fraction *= 10
        digits += 1
    return remit_mul(whole, 10000, &whole) or remit_add(whole, fraction, out)


# ---------------------------------------------------------------- ip


cdef bint take_octets(Cursor *at, uint8_t *out) noexcept nogil:
    """Four decimal octets, no leading zero."""
    cdef int i, value
    cdef const char *start
    for i in range(4):
        if i and not take(at, c'.'):
            return False
        start = at.p
        value = 0
        while at.p < at.end and at.p - start < 3 and is_digit(at.p[0]):
            value = 10 * value + (at.p[0] - c'0')
            at.p += 1
        if at.p == start or value > 255 or (start[0] == c'0' and at.p - start > 1):
            return False
        out[i] = <uint8_t> value
    return True


cdef inline int hex_digit(char c) noexcept nogil:
    if is_digit(c):
        return c - c'0'
    if c'a' <= c <= c'f':
        return c - c'a' + 10
    if c'A' <= c <= c'F':
        return c - c'A' + 10
    return -1


cdef bint take_group(Cursor *at, uint8_t *out) noexcept nogil:
    """One to four hex digits."""
    cdef const char *start = at.p
    cdef int value = 0
    while at.p < at.end and at.p - start < 4 and hex_digit(at.p[0]) >= 0:
        value = 16 * value + hex_digit(at.p[0])
        at.p += 1
    out[0], out[1] = <uint8_t> (value >> 8), <uint8_t> (value & 0xFF)
    return at.p > start


cdef int take_groups(Cursor *at, uint8_t *out, int most) noexcept nogil:
    """Up to `most` groups parted by colons; how many. A colon without a group behind it is left."""
    cdef Cursor before
    cdef int found = 0
    while found < most:
        before = at[0]
        if (found and not take(at, c':')) or not take_group(at, out + 2 * found):
            at[0] = before
            break
        found += 1
    return found


cdef bint take_v6(Cursor *at, uint8_t *out) noexcept nogil:
    """Eight groups, or fewer around one `::` that stands for at least one."""
    cdef uint8_t tail[16]
    cdef int head, rest
    memset(out, 0, 16)
    head = take_groups(at, out, 8)
    if head == 8:
        return True
    if not take(at, c':') or not take(at, c':'):
        return False
    memset(out + 2 * head, 0, 16 - 2 * head)
    rest = take_groups(at, tail, 7 - head)
    memcpy(out + 16 - 2 * rest, tail, 2 * rest)
    return True


cdef bint take_prefix(Cursor *at, int most, uint8_t *out) noexcept nogil:
    cdef const char *start = at.p
    cdef int64_t value
    if at.end - at.p > (3 if most == 128 else 2) or take_number(at, False, &value):
        return False
    out[0] = <uint8_t> value
    return value <= most and (start[0] != c'0' or at.p - start == 1)


cdef int ip_parse(const char *p, uint32_t n, Ip *out) noexcept nogil:
    """An address of version 4 or 6, with or without a prefix; no embedded version 4, no zone."""
    cdef Cursor at
    at.p, at.end = p, p + n
    memset(out, 0, sizeof(Ip))
    out.v6 = memchr(p, c':', n) is not NULL
    if not (take_v6(&at, out.addr) if out.v6 else take_octets(&at, out.addr + 12)):
        return 1
    out.prefix = 128 if out.v6 else 32
    if take(&at, c'/') and not take_prefix(&at, out.prefix, &out.prefix):
        return 1
    return at.p != at.end


cdef bint ip_is_loopback(const Ip *ip) noexcept nogil:
    """127.0.0.0/8 or ::1, when the whole range is inside it."""
    cdef int i
    if not ip.v6:
        return ip.addr[12] == 127 and ip.prefix >= 8
    for i in range(15):
        if ip.addr[i]:
            return False
    return ip.addr[15] == 1 and ip.prefix == 128


cdef bint ip_is_multicast(const Ip *ip) noexcept nogil:
    """224.0.0.0/4 or ff00::/8, when the whole range is inside it."""
    if not ip.v6:
        return ip.addr[12] >> 4 == 14 and ip.prefix >= 4
    return ip.addr[0] == 0xFF and ip.prefix >= 8


cdef bint ip_in_range(const Ip *ip, const Ip *range_) noexcept nogil:
    cdef int start = 0 if ip.v6 else 12
    cdef int whole = range_.prefix // 8
    cdef int bits = range_.prefix % 8
    if ip.v6 != range_.v6 or ip.prefix < range_.prefix or memcmp(ip.addr + start, range_.addr + start, whole):
        return False
    return bits == 0 or (ip.addr[start + whole] ^ range_.addr[start + whole]) >> (8 - bits) == 0


# ---------------------------------------------------------------- datetime


cdef bint is_leap(int year) noexcept nogil:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


cdef int days_in(int year, int month) noexcept nogil:
    if month == 2:
        return 29 if is_leap(year) else 28
    return 30 if month in (4, 6, 9, 11) else 31


cdef int64_t days_since_1970(int year, int month, int day) noexcept nogil:
    """Proleptic Gregorian calendar, years 0 to 9999; years are counted from March so that a leap day ends one."""
    cdef int64_t shifted = year - 1 if month <= 2 else year
    cdef int64_t of_year = (153 * (month + (9 if month <= 2 else -3)) + 2) // 5 + day - 1
    # 400 years are added and taken off again so that no division sees a negative year.
    shifted += 400
    return 365 * shifted + shifted // 4 - shifted // 100 + shifted // 400 + of_year - 719468 - 146097


cdef bint take_clock(Cursor *at, int64_t *ms) noexcept nogil:
    """hh:mm:ss of a day without leap seconds."""
    cdef int hour, minute, second
    if not take_fixed(at, 2, &hour) or not take(at, c':') or not take_fixed(at, 2, &minute):
        return False
    if not take(at, c':') or not take_fixed(at, 2, &second):
        return False
    ms[0] = 1000 * (60 * (60 * <int64_t> hour + minute) + second)
    return hour < 24 and minute < 60 and second < 60


cdef bint take_zone(Cursor *at, int64_t *ms) noexcept nogil:
    """Z, or the local time's distance from it as +hhmm or -hhmm."""
    cdef int hour, minute
    cdef bint west
    ms[0] = 0
    if take(at, c'Z'):
        return True
    west = take(at, c'-')
    if not (west or take(at, c'+')) or not take_fixed(at, 2, &hour) or not take_fixed(at, 2, &minute):
        return False
    ms[0] = 60000 * (60 * <int64_t> hour + minute)
    if west:
        ms[0] = -ms[0]
    return hour < 24 and minute < 60


cdef int datetime_parse(const char *p, uint32_t n, int64_t *out) noexcept nogil:
    """YYYY-MM-DD, or with Thh:mm:ss, optional .SSS, and Z or +hhmm or -hhmm."""
    cdef Cursor at
    cdef int year, month, day
    cdef int thousandths = 0
    cdef int64_t clock, zone
    at.p, at.end = p, p + n
    if not take_fixed(&at, 4, &year) or not take(&at, c'-') or not take_fixed(&at, 2, &month):
        return 1
    if not take(&at, c'-') or not take_fixed(&at, 2, &day):
        return 1
    if month < 1 or month > 12 or day < 1 or day > days_in(year, month):
        return 1
    out[0] = DAY_MS * days_since_1970(year, month, day)
    if at.p == at.end:
        return 0
    if not take(&at, c'T') or not take_clock(&at, &clock):
        return 1
    if take(&at, c'.') and not take_fixed(&at, 3, &thousandths):
        return 1
    if not take_zone(&at, &zone):
        return 1
    out[0] += clock + thousandths - zone
    return at.p != at.end


cdef int64_t datetime_time(int64_t at) noexcept nogil:
    cdef int64_t rest = at % DAY_MS
    return rest + DAY_MS if rest < 0 else rest


cdef int datetime_date(int64_t at, int64_t *out) noexcept nogil:
    return remit_sub(at, datetime_time(at), out)


# ---------------------------------------------------------------- duration


cdef int64_t take_unit(Cursor *at, int *rank) noexcept nogil:
    """Milliseconds of the unit that follows and its rank (days 1 to milliseconds 5), or 0."""
    if take(at, c'd'):
        rank[0] = 1
        return DAY_MS
    if take(at, c'h'):
        rank[0] = 2
        return 3600000
    if take(at, c's'):
        rank[0] = 4
        return 1000
    if not take(at, c'm'):
        return 0
    rank[0] = 5 if take(at, c's') else 3
    return 1 if rank[0] == 5 else 60000


cdef int duration_parse(const char *p, uint32_t n, int64_t *out) noexcept nogil:
    """-? and then any of days, hours, minutes, seconds, milliseconds, each once and in this order: -1d2h3m4s5ms."""
    cdef Cursor at
    cdef bint negative
    cdef int64_t number, unit
    cdef int rank = 0
    cdef int last = 0
    at.p, at.end = p, p + n
    negative = take(&at, c'-')
    out[0] = 0
    if at.p == at.end:
        return 1
    while at.p < at.end:
        if take_number(&at, negative, &number):
            return 1
        unit = take_unit(&at, &rank)
        if unit == 0 or rank <= last:
            return 1
        last = rank
        if remit_mul(number, unit, &number) or remit_add(out[0], number, out):
            return 1
    return 0


# ---------------------------------------------------------------- Python face


def parse(str fn, str text):
    """The value that Cedar's constructor `fn` makes of `text`.

    ip: (version 6?, prefix length, 16 address bytes, version 4 in the last four). decimal: times 10,000. datetime: ms
    since 1970-01-01T00:00:00Z. duration: ms. Raises ValueError when Cedar refuses the text, KeyError for an unknown
    constructor.
    """
    cdef bytes data = text.encode()
    cdef const char *p = data
    cdef uint32_t n = <uint32_t> len(data)
    cdef int64_t value = 0
    cdef Ip ip
    cdef int bad
    if fn == "ip":
        if ip_parse(p, n, &ip):
            raise ValueError(f"`{text}` is not an ip")
        return bool(ip.v6), ip.prefix, (<const char *> ip.addr)[:16]
    if fn == "decimal":
        bad = decimal_parse(p, n, &value)
    elif fn == "datetime":
        bad = datetime_parse(p, n, &value)
    elif fn == "duration":
        bad = duration_parse(p, n, &value)
    else:
        raise KeyError(fn)
    if bad:
        raise ValueError(f"`{text}` is not a {fn}")
    return value
