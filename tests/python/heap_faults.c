/* What extensions do that know no spans: blocks made, moved and freed without the GIL,
 * on threads that Python has never seen, and while a thread or the process ends. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Of CPython; declared here, as its headers need not be there. */
void *PyMem_RawMalloc(size_t size);
void *PyMem_RawCalloc(size_t count, size_t size);
void *PyMem_RawRealloc(void *block, size_t size);
void PyMem_RawFree(void *block);

struct blocks {
    size_t count;
    void *at[];
};

struct blocks *make_blocks(size_t count, size_t size) {
    struct blocks *blocks = malloc(sizeof *blocks + count * sizeof(void *));
    if (blocks == NULL) abort();
    blocks->count = count;
    for (size_t i = 0; i < count; i++)
        if ((blocks->at[i] = PyMem_RawMalloc(size)) == NULL) abort();
    return blocks;
}

void resize_blocks(struct blocks *blocks, size_t size) {
    for (size_t i = 0; i < blocks->count; i++)
        if ((blocks->at[i] = PyMem_RawRealloc(blocks->at[i], size)) == NULL) abort();
}

void free_blocks(struct blocks *blocks) {
    for (size_t i = 0; i < blocks->count; i++) PyMem_RawFree(blocks->at[i]);
    free(blocks);
}

/* --- threads of our own ------------------------------------------------------- */

struct job {
    struct blocks *blocks;
    size_t size;
};

static void *make_job(void *argument) {
    struct job *job = argument;
    job->blocks = make_blocks(job->blocks->count, job->size);
    return NULL;
}
static void *resize_job(void *argument) {
    struct job *job = argument;
    resize_blocks(job->blocks, job->size);
    return NULL;
}
static void *free_job(void *argument) {
    struct job *job = argument;
    free_blocks(job->blocks);
    return NULL;
}

static void run_elsewhere(void *(*function)(void *), struct job *job) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, function, job) != 0) abort();
    pthread_join(thread, NULL);
}

struct blocks *make_blocks_elsewhere(size_t count, size_t size) {
    struct blocks wanted = {.count = count};
    struct job job = {&wanted, size};
    run_elsewhere(make_job, &job);
    return job.blocks;
}
void resize_blocks_elsewhere(struct blocks *blocks, size_t size) {
    struct job job = {blocks, size};
    run_elsewhere(resize_job, &job);
}
void free_blocks_elsewhere(struct blocks *blocks) {
    struct job job = {blocks, 0};
    run_elsewhere(free_job, &job);
}

/* --- a race for addresses ----------------------------------------------------- */

#define SLOTS 32
static _Atomic(void *) slots[SLOTS];
static atomic_bool churn_on;

static uint64_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

/* At least 600 bytes, so that a single one that is lost shows. */
static size_t size_of(uint64_t number) {
    return number % 4096 == 0 ? (size_t)17 << 20 : 600 + number % 5 * 700;
}

/* Each slot holds a block that belongs to whoever takes it out. */
static void churn_step(uint64_t *state) {
    uint64_t number = next_random(state);
    size_t size = size_of(next_random(state));
    void *block = atomic_exchange(&slots[number % SLOTS], NULL);
    switch (number / SLOTS % 4) {
    case 0:
        PyMem_RawFree(block);
        block = PyMem_RawMalloc(size);
        break;
    case 1:
        PyMem_RawFree(block);
        block = PyMem_RawCalloc(2, size / 2);
        break;
    case 2:
        /* Fails: the old block is there as before. */
        if (PyMem_RawRealloc(block, SIZE_MAX / 4) != NULL) abort();
        break;
    default:
        block = PyMem_RawRealloc(block, size);
        break;
    }
    if (block != NULL) memset(block, 0x5a, 600); /* may not be anybody else's */
    PyMem_RawFree(atomic_exchange(&slots[next_random(state) % SLOTS], block));
}

void churn(long rounds, uint64_t seed) {
    uint64_t state = seed;
    for (long i = 0; i < rounds; i++) churn_step(&state);
}

void churn_end(void) {
    for (size_t i = 0; i < SLOTS; i++) PyMem_RawFree(atomic_exchange(&slots[i], NULL));
}

#define MOST_THREADS 8
static pthread_t threads[MOST_THREADS];
static int thread_count;

static void *churn_until_stopped(void *argument) {
    uint64_t state = (uintptr_t)argument;
    while (atomic_load(&churn_on)) churn_step(&state);
    return NULL;
}

void churn_elsewhere(int count) {
    atomic_store(&churn_on, true);
    for (thread_count = 0; thread_count < count; thread_count++)
        if (pthread_create(&threads[thread_count], NULL, churn_until_stopped,
                           (void *)(uintptr_t)(thread_count + 1)) != 0)
            abort();
}

void churn_stop(void) {
    atomic_store(&churn_on, false);
    for (int i = 0; i < thread_count; i++) pthread_join(threads[i], NULL);
    thread_count = 0;
}

/* --- late --------------------------------------------------------------------- */

static pthread_key_t key;
static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static atomic_int late_frees;

struct late {
    struct blocks *blocks;
    int rounds;
};

/* The last of the rounds that the C library gives comes after everybody else's. */
static void free_late(void *value) {
    struct late *late = value;
    void *other = PyMem_RawMalloc(1000);
    if (--late->rounds > 0) {
        pthread_setspecific(key, late);
    } else {
        free_blocks(late->blocks);
        free(late);
        atomic_fetch_add(&late_frees, 1);
    }
    PyMem_RawFree(other);
}

static void make_key(void) {
    pthread_key_create(&key, free_late);
}

void free_at_thread_exit(struct blocks *blocks) {
    struct late *late = malloc(sizeof *late);
    if (late == NULL) abort();
    *late = (struct late){blocks, 3};
    pthread_once(&key_once, make_key);
    pthread_setspecific(key, late);
}

int count_late_frees(void) {
    return atomic_load(&late_frees);
}

static struct blocks *at_exit;
static void free_now(void) {
    free_blocks_elsewhere(at_exit);
}
void free_at_process_exit(struct blocks *blocks) {
    at_exit = blocks;
    atexit(free_now);
}
