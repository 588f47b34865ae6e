#include "span_model.h"

#include "input.h"

#include <string.h>

static bool is_of_session(const struct model *m, const struct model_span *span) {
    return m->session != 0 && span->session == m->session;
}

/* --- time ------------------------------------------------------------------------- */

/* Who is charged for what the thread does; or NULL. */
static struct model_span *runs(const struct model *m,
                               const struct model_thread *thread) {
    if (!thread->alive || thread->depth == 0) return NULL;
    struct model_span *top = thread->stack[thread->depth - 1];
    return is_of_session(m, top) && !top->out ? top : NULL;
}

static struct model_values *values_of(struct model *m, const struct model_span *span) {
    return &m->nodes[span->path].values;
}

/* All of a thread's time belongs to its innermost span (5.1, 5.2). */
static void charge(struct model_values *values, uint64_t wall, uint64_t cpu,
                   uint64_t system) {
    values->busy += wall;
    values->cpu += cpu;
    values->system += system;
}

void model_advance(struct model *m, struct model_thread *running, uint64_t wall,
                   uint64_t cpu, uint64_t system) {
    for (unsigned n = 0; n < MODEL_THREADS; n++) {
        struct model_thread *thread = &m->threads[n];
        struct model_span *span = runs(m, thread);
        if (span == NULL) continue;
        bool uses = thread == running;
        charge(values_of(m, span), wall, uses ? cpu : 0, uses ? system : 0);
        charge(&span->own, wall, uses ? cpu : 0, uses ? system : 0);
    }
    for (unsigned n = 0; n < m->span_count; n++) {
        struct model_span *span = &m->spans[n];
        if (!span->idle || !is_of_session(m, span) || span->out) continue;
        values_of(m, span)->idle += wall;
        span->own.idle += wall;
    }
    m->now += wall;
}

void model_allocate(struct model *m, struct model_thread *thread, uint64_t objects,
                    uint64_t space) {
    struct model_span *span = runs(m, thread);
    if (span == NULL) return;
    values_of(m, span)->objects += objects;
    values_of(m, span)->space += space;
    span->own.objects += objects;
    span->own.space += space;
}

/* --- sessions and threads -----------------------------------------------------------
 */

void model_start(struct model *m, uint32_t max_nodes, bool sampling) {
    m->session = ++m->sessions;
    m->max_nodes = max_nodes;
    m->sampling = sampling;
    m->node_count = 1;
    memset(m->nodes, 0, sizeof m->nodes);
}

static void destroy(struct model *m, struct model_span *span) {
    span->over = true;
    span->end = m->now;
}

static void settle(struct model *m, struct model_span *span) {
    span->on = NULL;
    span->asked_to_exit = span->adrift = false;
    span->idle = span->opened;
    if (!span->opened) destroy(m, span);
}

static void take_out(struct model_span **spans, unsigned *count, unsigned place) {
    memmove(&spans[place], &spans[place + 1], (*count - place - 1) * sizeof *spans);
    (*count)--;
}

static unsigned place_of(struct model_span *const *spans, unsigned count,
                         const struct model_span *span) {
    unsigned place = 0;
    while (place < count && spans[place] != span) place++;
    return place;
}

/* Whether a context that says `current` means this span. Those that are sampled out are
 * all alike. */
static bool is_same(const struct model_span *span, const struct model_span *current) {
    return span == current || (current != NULL && span->out && current->out);
}

/* Off the stack, wherever it is: what runs above goes on (3.8). The context's current
 * span is the one before it again, and whoever of this context was entered above it
 * comes after that one. */
static void leave(struct model *m, struct model_thread *thread,
                  struct model_span *span) {
    unsigned place = place_of(thread->stack, thread->depth, span);
    struct model_span *last = NULL, *current = thread->context->current;
    for (unsigned n = thread->depth; n-- > place + 1;) {
        if (!is_same(thread->stack[n], current)) continue;
        last = thread->stack[n];
        current = last->before;
    }
    if (is_same(span, current)) {
        if (last != NULL)
            last->before = span->before;
        else
            thread->context->current = span->before;
    }
    take_out(thread->stack, &thread->depth, place);
    settle(m, span);
}

void model_turn(struct model *m, struct model_thread *thread) {
    if (m->session == 0) return;
    if (thread->session != m->session) {
        thread->own_context.current = NULL;
        thread->session = m->session;
    }
    for (unsigned n = thread->depth; n-- > 0;) {
        struct model_span *span = thread->stack[n];
        if (!is_of_session(m, span))
            take_out(thread->stack, &thread->depth, n);
        else if (span->asked_to_exit)
            leave(m, thread, span);
    }
}

/* Spans that the thread leaves behind are abandoned, and counted. */
void model_end_thread(struct model *m, struct model_thread *thread) {
    for (unsigned n = thread->depth; n-- > 0;) {
        if (!is_of_session(m, thread->stack[n])) continue;
        m->abandoned++;
        settle(m, thread->stack[n]);
    }
    thread->alive = false;
}

/* --- spans
 * ---------------------------------------------------------------------------- */

/* The path of a new span; beyond the limit one node a parent for all others. */
static uint32_t node_below(struct model *m, uint32_t parent, uint32_t name) {
    for (uint32_t n = 1; n < m->node_count; n++)
        if (m->nodes[n].parent == parent && m->nodes[n].name == name) return n;
    if (name != MODEL_OTHER && m->node_count - 1 >= m->max_nodes) {
        m->folded++;
        if (parent != 0 && m->nodes[parent].name == MODEL_OTHER) return parent;
        return node_below(m, parent, MODEL_OTHER);
    }
    CHECK(m->node_count < MODEL_NODES);
    m->nodes[m->node_count] = (struct model_node){.parent = parent, .name = name};
    return m->node_count++;
}

static struct model_span *make(struct model *m) {
    CHECK(m->span_count < MODEL_SPANS);
    struct model_span *span = &m->spans[m->span_count++];
    *span =
        (struct model_span){.session = m->session, .start = m->now, .kept_under = -1};
    return span;
}

/* A child of `parent`, else of its context's current span (4.3), else of the innermost
 * running one (4.1, 4.4). What belongs to another session is no parent. A root may be
 * sampled out, a child is if its parent is (3.7). */
static struct model_span *create(struct model *m, struct model_thread *thread,
                                 uint32_t name, struct model_span *parent, bool sampled,
                                 bool opened) {
    struct model_span *above = parent;
    if (above == NULL) {
        above = thread->context->current;
        if (above == NULL || !is_of_session(m, above))
            above = thread->depth > 0 ? thread->stack[thread->depth - 1] : NULL;
    }
    if (above != NULL && (!is_of_session(m, above) || above->is_nobody)) above = NULL;
    struct model_span *span = make(m);
    span->opened = opened;
    span->out = above != NULL ? above->out : m->sampling && !sampled;
    if (span->out) {
        m->sampled_out++;
        return span;
    }
    span->path = node_below(m, above != NULL ? above->path : 0, name);
    span->parent_id = above != NULL ? above->id : 0;
    values_of(m, span)->calls++;
    return span;
}

static void push(struct model_thread *thread, struct model_span *span) {
    span->on = thread;
    span->before = thread->context->current;
    thread->context->current = span;
    thread->stack[thread->depth++] = span;
}

struct model_span *model_begin(struct model *m, struct model_thread *thread,
                               uint32_t name, struct model_span *parent, bool sampled) {
    struct model_span *span = create(m, thread, name, parent, sampled, false);
    push(thread, span);
    return span;
}

struct model_span *model_open(struct model *m, struct model_thread *thread,
                              uint32_t name, struct model_span *parent, bool sampled) {
    struct model_span *span = create(m, thread, name, parent, sampled, true);
    span->idle = true;
    return span;
}

void model_enter(struct model *m, struct model_thread *thread,
                 struct model_span *span) {
    if (!is_of_session(m, span)) return;
    span->idle = false;
    push(thread, span);
}

static void withdraw(struct model *m, struct model_span *span) {
    unsigned key = (unsigned)span->kept_under;
    unsigned place = place_of(m->groups[key], m->group_size[key], span);
    take_out(m->groups[key], &m->group_size[key], place);
    span->kept_under = -1;
    settle(m, span);
}

/* True if it took effect. On the wrong thread it is only asked for; out of order it is
 * put right; both are counted (3.8). */
bool model_exit(struct model *m, struct model_thread *thread, struct model_span *span) {
    if (span->kept_under >= 0) {
        m->misnested += is_of_session(m, span);
        withdraw(m, span);
        return true;
    }
    if (span->on == NULL && !span->adrift) return true;
    if (!is_of_session(m, span) || span->on == NULL) {
        if (span->on != NULL) {
            struct model_thread *on = span->on;
            unsigned place = place_of(on->stack, on->depth, span);
            if (place < on->depth) take_out(on->stack, &on->depth, place);
        }
        settle(m, span);
        return true;
    }
    if (span->on != thread) {
        m->misnested++;
        span->asked_to_exit = true;
        return false;
    }
    m->misnested += thread->stack[thread->depth - 1] != span;
    leave(m, thread, span);
    return true;
}

void model_close(struct model *m, struct model_span *span) {
    if (span->kept_under >= 0) withdraw(m, span);
    span->idle = false;
    destroy(m, span);
}

void model_clear(struct model *m, struct model_context *context) {
    context->current = make(m);
    context->current->is_nobody = context->current->over = true;
}

/* --- suspended spans ---------------------------------------------------------------
 */

/* The innermost ones leave the thread together (4.2), and are idle. What the key had
 * before is abandoned. */
void model_suspend(struct model *m, struct model_thread *thread, unsigned count,
                   unsigned key) {
    struct model_span *group[MODEL_SPANS];
    unsigned below = thread->depth - count;
    memcpy(group, &thread->stack[below], count * sizeof *group);
    for (unsigned n = count; n-- > 0;) {
        if (is_same(group[n], thread->context->current))
            thread->context->current = group[n]->before;
        group[n]->on = NULL;
        group[n]->idle = true;
        group[n]->kept_under = -1;
    }
    thread->depth = below;
    while (m->group_size[key] > 0)
        model_abandon(m, m->groups[key][m->group_size[key] - 1]);
    memcpy(m->groups[key], group, count * sizeof *group);
    m->group_size[key] = count;
    for (unsigned n = 0; n < count; n++) group[n]->kept_under = (int)key;
}

/* All that are kept under the key go on, in their order, in the thread's context; those
 * of another session, or on no thread of the session, nowhere. */
void model_resume(struct model *m, struct model_thread *thread, unsigned key) {
    for (unsigned n = 0; n < m->group_size[key]; n++) {
        struct model_span *span = m->groups[key][n];
        span->kept_under = -1;
        if (thread != NULL && is_of_session(m, span)) {
            span->idle = false;
            push(thread, span);
        } else if (!span->opened) {
            span->idle = false;
            span->adrift = true;
        }
    }
    m->group_size[key] = 0;
}

/* It will not be resumed. */
void model_abandon(struct model *m, struct model_span *span) {
    m->abandoned += is_of_session(m, span);
    withdraw(m, span);
}
