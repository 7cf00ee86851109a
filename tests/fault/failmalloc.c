/* Preloaded before the C library: makes allocations of one thread fail, and counts what it holds.

   Only the thread that was named is looked at, so the interpreter of the test beside it goes on. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void __libc_free(void *);

static atomic_long victim;  /* kernel id of the thread, 0: nobody */
static atomic_long asked;   /* its allocations so far */
static atomic_long first;   /* the first that fails, 1 and up */
static atomic_long count;   /* how many fail from there */
static atomic_long failed;
static atomic_long live;    /* its allocations less its releases */
static __thread long me;

static int is_victim(void) {
    long whom = atomic_load(&victim);
    if (whom == 0) return 0;
    if (me == 0) me = syscall(SYS_gettid);
    return me == whom;
}

static int fails(void) {
    long now, from;
    if (!is_victim()) return 0;
    now = atomic_fetch_add(&asked, 1) + 1;
    from = atomic_load(&first);
    if (now < from || now - from >= atomic_load(&count)) return 0;
    atomic_fetch_add(&failed, 1);
    errno = ENOMEM;
    return 1;
}

static void *counted(void *p) {
    if (p != NULL && is_victim()) atomic_fetch_add(&live, 1);
    return p;
}

void *malloc(size_t n) { return fails() ? NULL : counted(__libc_malloc(n)); }

void *calloc(size_t n, size_t size) { return fails() ? NULL : counted(__libc_calloc(n, size)); }

void *realloc(void *p, size_t n) {
    if (fails()) return NULL;
    return p == NULL ? counted(__libc_realloc(p, n)) : __libc_realloc(p, n);
}

void free(void *p) {
    if (p != NULL && is_victim()) atomic_fetch_sub(&live, 1);
    __libc_free(p);
}

/* From its next allocation on, the `from`-th and `how_many` - 1 more of thread `whom` fail; 0 ends it. */
void failmalloc(long whom, long from, long how_many) {
    atomic_store(&victim, 0);
    atomic_store(&asked, 0);
    atomic_store(&failed, 0);
    atomic_store(&live, 0);
    atomic_store(&first, from);
    atomic_store(&count, how_many);
    atomic_store(&victim, whom);
}

long failmalloc_asked(void) { return atomic_load(&asked); }

long failmalloc_failed(void) { return atomic_load(&failed); }

long failmalloc_live(void) { return atomic_load(&live); }
