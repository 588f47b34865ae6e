/* What spans cost, computed the plain way: tests/core/model.py once more, for programs
 * of which there are thousands in a second. Written from the contract alone: time
 * passes, and whoever runs pays. Numbers in brackets are its rules. */
#ifndef SPANPROF_TESTS_FUZZ_SPAN_MODEL_H
#define SPANPROF_TESTS_FUZZ_SPAN_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#define MODEL_THREADS 4
#define MODEL_SPANS 256
#define MODEL_NODES 300
#define MODEL_KEYS 3
#define MODEL_OTHER 255u /* the name of nodes beyond the limit */

struct model_values {
    uint64_t calls, busy, idle, cpu, system, objects, space;
};

/* A path; number 0 is the root. */
struct model_node {
    uint32_t parent, name;
    struct model_values values;
};

struct model_thread;

struct model_span {
    uint32_t session, path;
    bool opened;    /* explicitly, so that it outlives its exits (3.2) */
    bool out;       /* sampled out, with all its descendants (3.7) */
    bool is_nobody; /* no span, but what a context says whose spans are roots */
    bool idle, asked_to_exit;
    bool adrift; /* neither suspended nor on a stack, but not exited yet */
    bool over;   /* destroyed */
    bool told;   /* by the feed */
    uint64_t id, parent_id, start, end;
    struct model_values own;   /* its own part of its node's values (5.1) */
    struct model_thread *on;   /* the stack where it is */
    struct model_span *before; /* its context's current span before it was entered */
    int kept_under;            /* the key of its group; -1 */
};

struct model_context {
    struct model_span *current;
};

struct model_thread {
    bool alive;
    uint32_t session; /* that it was last seen in */
    struct model_span *stack[MODEL_SPANS];
    unsigned depth;
    struct model_context own_context, *context;
};

struct model {
    uint32_t session; /* 0: none runs */
    uint32_t max_nodes;
    bool sampling;
    uint32_t sessions, folded, node_count;
    uint64_t now, misnested, abandoned, sampled_out;
    struct model_thread threads[MODEL_THREADS];
    struct model_span spans[MODEL_SPANS];
    unsigned span_count;
    struct model_node nodes[MODEL_NODES];
    struct model_span *groups[MODEL_KEYS][MODEL_SPANS]; /* the innermost last */
    unsigned group_size[MODEL_KEYS];
};

void model_start(struct model *m, uint32_t max_nodes, bool sampling);
void model_advance(struct model *m, struct model_thread *runs, uint64_t wall,
                   uint64_t cpu, uint64_t system);
void model_allocate(struct model *m, struct model_thread *thread, uint64_t objects,
                    uint64_t space);

/* The thread does something with spans. It first leaves those of earlier sessions
 * behind, and exits those that other threads asked for (3.8). */
void model_turn(struct model *m, struct model_thread *thread);
void model_end_thread(struct model *m, struct model_thread *thread);

/* Of the running session. There must be room. */
struct model_span *model_begin(struct model *m, struct model_thread *thread,
                               uint32_t name, struct model_span *parent, bool sampled);
struct model_span *model_open(struct model *m, struct model_thread *thread,
                              uint32_t name, struct model_span *parent, bool sampled);
void model_enter(struct model *m, struct model_thread *thread, struct model_span *span);
bool model_exit(struct model *m, struct model_thread *thread, struct model_span *span);
void model_close(struct model *m, struct model_span *span);

/* The context's next span is a root. */
void model_clear(struct model *m, struct model_context *context);

void model_suspend(struct model *m, struct model_thread *thread, unsigned count,
                   unsigned key);
void model_resume(struct model *m, struct model_thread *thread, unsigned key);
void model_abandon(struct model *m, struct model_span *span);

#endif
