/* libFuzzer target: the bytes of one connection, from the socket of a native door to the last byte of its answers.

   An input is one byte that names the door (tests/fuzz/doors.py) and what a peer sends on one connection, preface
   first. The doors run in this process, built with sanitizers and coverage. Beside memory errors these are findings:
   a complete request that nobody answered on a connection that ended without a cause; an answer without a message;
   an ALLOW from the doors whose rules allow nothing; a frame that HTTP/2 does not have. `make fuzz` runs it. */
#include <Python.h>
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    DOORS = 4,
    DENIES = 1, /* bits of the first byte, as in doors.py */
    ENVOY = 2,
    PREFACE_BYTES = 24,
    FRAME_BYTES = 9,
    STREAMS_MAX = 512,
    PREFIX = 5,
    DATA = 0,
    HEADERS = 1,
    RST = 3,
    GOAWAY = 7,
    CONTINUATION = 9,
    END_STREAM = 1,
    END_HEADERS = 4,
    PADDED = 8,
    PRIORITY = 0x20,
    TYPES = 10,
    MESSAGE_MAX = 1 << 21,
    ASKED = 1,
    ANSWERED = 2,
    SILENCE_MS = 30000,
};

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

static struct sockaddr_un doors[DOORS];
static uint8_t inbox[1 << 16];

struct stream {
    uint32_t id;
    int opened;   /* ASKED: by the peer's header block, ANSWERED: by ours */
    int asked;    /* the peer has sent all of it */
    int left;     /* the peer reset it */
    int answered; /* a header block, or a reset, came back */
    int over;
    size_t n;     /* bytes of its message, prefix included */
    uint8_t *message;
};

struct talk {
    int door;
    int deny;
    struct stream streams[STREAMS_MAX];
    size_t count;
    int told; /* GOAWAY: the connection ends with a cause */
    uint8_t rest[1 << 17];
    size_t rest_n;
};

static struct talk talk;

static void finding(const char *what, uint32_t stream) {
    fprintf(stderr, "FINDING: %s (door %d, stream %u)\n", what, talk.door, stream);
    abort();
}

static uint32_t u24(const uint8_t *p) { return (uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2]; }

static uint32_t u32(const uint8_t *p) { return (uint32_t)p[0] << 24 | u24(p + 1); }

static struct stream *stream_of(uint32_t id) {
    for (size_t i = 0; i < talk.count; i++)
        if (talk.streams[i].id == id) return &talk.streams[i];
    if (talk.count == STREAMS_MAX) return NULL;
    talk.streams[talk.count].id = id;
    return &talk.streams[talk.count++];
}

/* ---------------------------------------------------------------- what was asked */

static void note_asked(const uint8_t *p, size_t n) {
    int ends = 0, gone = 0;
    if (n < PREFACE_BYTES) return;
    for (size_t at = PREFACE_BYTES; at + FRAME_BYTES <= n;) {
        const uint8_t *f = p + at;
        uint32_t id = u32(f + 5) & 0x7fffffff;
        struct stream *s;
        at += FRAME_BYTES + u24(f);
        if (at > n) return;
        /* Who says that it goes is gone once nothing that it opened before is left. */
        gone |= f[3] == GOAWAY;
        if (f[3] != DATA && f[3] != HEADERS && f[3] != RST && f[3] != CONTINUATION) continue;
        if ((s = stream_of(id)) == NULL) return;
        if (gone && !s->opened) s->left = 1;
        if (f[3] == HEADERS) ends = f[4] & END_STREAM;
        if ((f[3] == HEADERS || f[3] == CONTINUATION) && f[4] & END_HEADERS) {
            s->opened |= ASKED;
            s->asked |= ends;
        }
        if (f[3] == DATA && s->opened && f[4] & END_STREAM) s->asked = 1;
        if (f[3] == RST) s->left = 1;
    }
}

/* ---------------------------------------------------------------- what was answered: protobuf */

struct field {
    uint32_t number;
    int wire;
    uint64_t value; /* of a varint */
    const uint8_t *p;
    size_t n;
};

static int varint(const uint8_t **p, const uint8_t *end, uint64_t *value) {
    *value = 0;
    for (int shift = 0; *p < end && shift < 64; shift += 7) {
        uint8_t byte = *(*p)++;
        *value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) return 1;
    }
    return 0;
}

static int next_field(const uint8_t **p, const uint8_t *end, struct field *f) {
    uint64_t key, n;
    if (*p == end) return 0;
    if (!varint(p, end, &key)) finding("an answer that is no protobuf", 0);
    f->number = (uint32_t)(key >> 3);
    f->wire = (int)(key & 7);
    if (f->wire == 0) {
        if (!varint(p, end, &f->value)) finding("an answer with half a varint", 0);
        return 1;
    }
    n = f->wire == 1 ? 8 : 4;
    if (f->wire == 2 && !varint(p, end, &n)) finding("an answer with half a length", 0);
    if ((f->wire != 1 && f->wire != 2 && f->wire != 5) || n > (uint64_t)(end - *p))
        finding("an answer that is cut", 0);
    f->p = *p;
    f->n = n;
    *p += n;
    return 1;
}

/* remit.authz.v1.CheckResponse: 1 allowed, 0 anything else, -1 no outcome in it. */
static int check_outcome(const uint8_t *p, size_t n) {
    const uint8_t *end = p + n;
    struct field f;
    int found = -1;
    while (next_field(&p, end, &f))
        if (f.number == 3 && f.wire == 0) found = f.value == 1;
    return found;
}

/* envoy.service.auth.v3.CheckResponse: allowed unless status.code is there and is not 0. */
static int envoy_allows(const uint8_t *p, size_t n) {
    const uint8_t *end = p + n;
    struct field f, code;
    int allowed = 1;
    while (next_field(&p, end, &f)) {
        const uint8_t *q = f.p;
        if (f.number != 1 || f.wire != 2) continue;
        while (next_field(&q, f.p + f.n, &code))
            if (code.number == 1 && code.wire == 0 && code.value != 0) allowed = 0;
    }
    return allowed;
}

/* remit.authz.v1.CheckStreamResponse with a notice: no other answer has its field 2 alone. */
static int is_notice(const uint8_t *p, size_t n) {
    const uint8_t *end = p + n;
    struct field f;
    int count = 0, found = 0;
    while (next_field(&p, end, &f)) {
        count++;
        found |= f.number == 2 && f.wire == 2;
    }
    return found && count == 1;
}

static int is_health(const uint8_t *p, size_t n) { return n == 2 && p[0] == 8 && (p[1] == 1 || p[1] == 2); }

static int batch_allows(const uint8_t *p, size_t n) {
    const uint8_t *end = p + n;
    struct field f;
    int allowed = 0;
    while (next_field(&p, end, &f)) {
        int one = f.number == 1 && f.wire == 2 ? check_outcome(f.p, f.n) : -1;
        if (one < 0) finding("a batch with an answer that says nothing", 0);
        allowed |= one;
    }
    return allowed;
}

static void judge_one(const struct stream *s, const uint8_t *p, size_t n) {
    int allowed;
    if (is_health(p, n) || (!(talk.door & ENVOY) && is_notice(p, n))) return;
    if (talk.door & ENVOY) {
        allowed = envoy_allows(p, n);
    } else {
        allowed = check_outcome(p, n);
        if (allowed < 0) allowed = batch_allows(p, n);
    }
    if (allowed && talk.deny) finding("an ALLOW that no rule gives", s->id);
}

static void judge_messages(const struct stream *s) {
    size_t at = 0;
    do {
        const uint8_t *p = s->message + at;
        size_t left = s->n - at;
        if (left <= PREFIX || p[0] != 0 || u32(p + 1) == 0 || u32(p + 1) > left - PREFIX)
            finding("an empty answer", s->id);
        judge_one(s, p + PREFIX, u32(p + 1));
        at += PREFIX + u32(p + 1);
    } while (at < s->n);
}

/* ---------------------------------------------------------------- what was answered: frames */

static void keep(struct stream *s, const uint8_t *p, size_t n) {
    if (s->n + n > MESSAGE_MAX) finding("an answer without end", s->id);
    s->message = realloc(s->message, s->n + n + 1);
    memcpy(s->message + s->n, p, n);
    s->n += n;
}

static void take_frame(const uint8_t *f, size_t n) {
    uint32_t id = u32(f + 5);
    struct stream *s;
    if (f[3] >= TYPES || id >> 31) finding("a frame that HTTP/2 does not have", id);
    if (f[3] == GOAWAY) talk.told = 1;
    if ((f[3] != HEADERS && f[3] != DATA && f[3] != RST) || (s = stream_of(id)) == NULL) return;
    if (s->over && f[3] != RST) finding("a frame after the end of its stream", id);
    s->answered = 1;
    if (f[3] == RST) s->over = 1;
    if (f[3] == DATA) keep(s, f + FRAME_BYTES, n);
    if (f[3] == DATA && f[4] & END_STREAM) finding("an answer without trailers", id);
    if (f[3] == HEADERS && f[4] & END_STREAM) {
        s->over = 1;
        /* The first block alone is a status without a message (Trailers-Only). */
        if (s->opened & ANSWERED) judge_messages(s);
    }
    if (f[3] == HEADERS) s->opened |= ANSWERED;
}

static void take(const uint8_t *p, size_t n) {
    size_t at = 0;
    memcpy(talk.rest + talk.rest_n, p, n);
    talk.rest_n += n;
    while (talk.rest_n - at >= FRAME_BYTES) {
        size_t size = u24(talk.rest + at);
        if (size > 16384) finding("a frame that is too long", 0);
        if (talk.rest_n - at < FRAME_BYTES + size) break;
        take_frame(talk.rest + at, size);
        at += FRAME_BYTES + size;
    }
    memmove(talk.rest, talk.rest + at, talk.rest_n - at);
    talk.rest_n -= at;
}

/* ---------------------------------------------------------------- one connection */

/* Whether an answer is due; what goes through Python comes later than the rest. */
static int waits(void) {
    for (size_t i = 0; i < talk.count && !talk.told; i++) {
        const struct stream *s = &talk.streams[i];
        if (s->asked && s->opened & ASKED && !s->left && !s->answered) return 1;
    }
    return 0;
}

static void exchange(int fd, const uint8_t *p, size_t n) {
    size_t sent = 0;
    int ended = 0;
    struct pollfd ready = {fd, POLLIN | POLLOUT, 0};
    for (;;) {
        int came = poll(&ready, 1, SILENCE_MS);
        if (came < 0) continue; /* libFuzzer's own alarm */
        if (came == 0) finding("neither an answer nor an end", 0);
        if (ready.revents & POLLOUT && sent < n) {
            ssize_t done = send(fd, p + sent, n - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (done > 0) sent += (size_t)done;
            if (done < 0 && errno != EAGAIN) sent = n;
        }
        if (ready.revents & (POLLIN | POLLHUP | POLLERR)) {
            ssize_t got = recv(fd, inbox, sizeof inbox, MSG_DONTWAIT);
            if (got == 0 || (got < 0 && errno != EAGAIN)) return;
            if (got > 0) take(inbox, (size_t)got);
        }
        if (sent < n) continue;
        ready.events = POLLIN;
        if (!ended && !waits()) {
            shutdown(fd, SHUT_WR);
            ended = 1;
        }
    }
}

static void judge_end(void) {
    for (size_t i = 0; i < talk.count; i++) free(talk.streams[i].message);
    if (waits()) finding("a request without an answer", 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int fd;
    if (size == 0) return -1;
    memset(&talk, 0, offsetof(struct talk, rest));
    talk.rest_n = 0;
    talk.door = data[0] % DOORS;
    talk.deny = talk.door & DENIES;
    note_asked(data + 1, size - 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&doors[talk.door], sizeof doors[0])) finding("the door is gone", 0);
    exchange(fd, data + 1, size - 1);
    close(fd);
    judge_end();
    return 0;
}

/* ---------------------------------------------------------------- mutation by frames */

struct frames {
    const uint8_t *at[STREAMS_MAX];
    size_t n[STREAMS_MAX];
    size_t count;
};

static void split(const uint8_t *p, size_t n, struct frames *out) {
    out->count = 0;
    for (size_t at = 1 + PREFACE_BYTES; at + FRAME_BYTES <= n && out->count < STREAMS_MAX; out->count++) {
        size_t size = FRAME_BYTES + u24(p + at);
        if (size > n - at) size = n - at;
        out->at[out->count] = p + at;
        out->n[out->count] = size;
        at += size;
    }
}

static void put24(uint8_t *p, size_t n) {
    p[0] = (uint8_t)(n >> 16);
    p[1] = (uint8_t)(n >> 8);
    p[2] = (uint8_t)n;
}

/* Change the payload of one frame, a gRPC message within it where it is one, and mend the lengths. */
static size_t change_payload(uint8_t *frame, size_t n, size_t room) {
    size_t skip = frame[3] == DATA && n > FRAME_BYTES + PREFIX && rand() % 8 ? FRAME_BYTES + PREFIX : FRAME_BYTES;
    size_t m = LLVMFuzzerMutate(frame + skip, n - skip, room - skip);
    put24(frame, skip + m - FRAME_BYTES);
    if (skip > FRAME_BYTES) {
        frame[FRAME_BYTES + 1] = 0;
        put24(frame + FRAME_BYTES + 2, m);
    }
    return skip + m;
}

static void change_head(uint8_t *frame) {
    switch (rand() % 3) {
    case 0: frame[3] = (uint8_t)(rand() % (TYPES + 1)); break;
    case 1: frame[4] ^= (uint8_t)(1 << rand() % 8); break;
    default: frame[8] = (uint8_t)(rand() % 16); break;
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    static struct frames frames;
    static uint8_t made[1 << 17];
    size_t n = 1 + PREFACE_BYTES, which, kind;
    srand(seed);
    split(data, size, &frames);
    if (frames.count == 0 || rand() % 10 == 0 || max_size > sizeof made) return LLVMFuzzerMutate(data, size, max_size);
    which = (size_t)rand() % frames.count;
    kind = (size_t)rand() % 10;
    memcpy(made, data, n);
    if (kind == 9) made[0] = (uint8_t)(rand() % DOORS);
    for (size_t i = 0; i < frames.count; i++) {
        size_t m = frames.n[i], others = 0;
        for (size_t j = i + 1; j < frames.count; j++) others += frames.n[j];
        if (i == which && kind == 0) continue;
        if (n + 2 * m + others > max_size) break;
        memcpy(made + n, frames.at[i], m);
        if (i == which && m >= FRAME_BYTES) {
            if (kind == 1) memcpy(made + n + m, frames.at[i], m), m *= 2;
            if (kind == 2 || kind == 3) change_head(made + n);
            if (kind >= 4 && kind <= 8) m = change_payload(made + n, m, max_size - n - others);
        }
        n += m;
    }
    memcpy(data, made, n);
    return n;
}

/* The first frames of one input and the last of another. */
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_n, const uint8_t *b, size_t b_n, uint8_t *out, size_t cap,
                                 unsigned int seed) {
    static struct frames first, second;
    size_t n = 1 + PREFACE_BYTES, cut, from;
    srand(seed);
    split(a, a_n, &first);
    split(b, b_n, &second);
    if (a_n < n || n > cap) return 0;
    memcpy(out, a, n);
    cut = (size_t)rand() % (first.count + 1);
    from = (size_t)rand() % (second.count + 1);
    for (size_t i = 0; i < cut && n + first.n[i] <= cap; i++) memcpy(out + n, first.at[i], first.n[i]), n += first.n[i];
    for (size_t i = from; i < second.count && n + second.n[i] <= cap; i++)
        memcpy(out + n, second.at[i], second.n[i]), n += second.n[i];
    return n;
}

/* ---------------------------------------------------------------- the doors */

static void start_python(void) {
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;
    /* The interpreter of the virtual environment, so that its packages are found. */
    PyConfig_SetBytesString(&config, &config.executable, getenv("REMIT_PYTHON"));
    PyConfig_SetBytesString(&config, &config.program_name, getenv("REMIT_PYTHON"));
    if (PyStatus_Exception(Py_InitializeFromConfig(&config))) exit(1);
    PyConfig_Clear(&config);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    PyObject *module, *paths;
    start_python();
    PyRun_SimpleString("import sys; sys.path.insert(0, '')");
    module = PyImport_ImportModule("tests.fuzz.doors");
    paths = module ? PyObject_CallMethod(module, "serve", NULL) : NULL;
    if (paths == NULL || PyList_Size(paths) != DOORS) {
        PyErr_Print();
        exit(1);
    }
    for (int i = 0; i < DOORS; i++) {
        doors[i].sun_family = AF_UNIX;
        strncpy(doors[i].sun_path, PyUnicode_AsUTF8(PyList_GetItem(paths, i)), sizeof doors[i].sun_path - 1);
    }
    PyEval_SaveThread();
    return 0;
}
