/* A C library whose memory runs out when it is told to: to be preloaded. It counts the
 * blocks that are there, so that a leak shows. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* glibc's own, under names that nobody replaces. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);
void __libc_free(void *block);

/* Of one thread: the others go on as ever. */
static _Thread_local bool armed __attribute__((tls_model("initial-exec")));
static _Thread_local long until __attribute__((tls_model("initial-exec")));
static _Thread_local long there __attribute__((tls_model("initial-exec")));

/* From now on, on this thread: let so many requests pass, then refuse one. */
void refuse_after(long requests) {
    until = requests;
    armed = true;
}

/* Whether it has come to that; and no more refusals. */
bool has_refused(void) {
    bool refused = !armed;
    armed = false;
    return refused;
}

/* Blocks and mappings made less those freed, by this thread. */
long blocks_there(void) {
    return there;
}

static bool refuses(void) {
    if (!armed || until-- > 0) return false;
    armed = false;
    errno = ENOMEM;
    return true;
}

static void *count(void *block) {
    there += block != NULL;
    return block;
}

void *malloc(size_t size) {
    return refuses() ? NULL : count(__libc_malloc(size));
}

void *calloc(size_t number, size_t size) {
    return refuses() ? NULL : count(__libc_calloc(number, size));
}

void *realloc(void *block, size_t size) {
    if (refuses()) return NULL;
    void *moved = __libc_realloc(block, size);
    return block == NULL ? count(moved) : moved;
}

void free(void *block) {
    there -= block != NULL;
    __libc_free(block);
}

void *mmap(void *at, size_t size, int rights, int flags, int file, off_t offset) {
    if (refuses()) return MAP_FAILED;
    void *memory = (void *)syscall(SYS_mmap, at, size, rights, flags, file, offset);
    if (memory != MAP_FAILED) there++;
    return memory;
}

/* Its name where offsets are asked to have 64 bits, which all have here. */
void *mmap64(void *at, size_t size, int rights, int flags, int file, off_t offset)
    __attribute__((alias("mmap")));

int munmap(void *memory, size_t size) {
    int status = (int)syscall(SYS_munmap, memory, size);
    if (status == 0) there--;
    return status;
}
