#include "span_checks.h"

#include "input.h"

#include "../../csrc/core/callsite.h"
#include "../../csrc/core/collector.h"

#include <string.h>

struct model model;
sp_key model_keys[MODEL_NAMES];

/* Of the running session, by node: what all deltas told, and the system's time that the
 * feed told. */
static struct model_values told[MODEL_NODES];
static uint64_t told_system[MODEL_NODES];

static bool knows_system;

void check_begin(void) {
    knows_system = true;
    memset(told, 0, sizeof told);
    memset(told_system, 0, sizeof told_system);
}

static sp_key key_of(uint32_t name) {
    return name == MODEL_OTHER ? sp_key_make(SP_CALLSITE_OTHER, SP_LABELS_NONE)
                               : model_keys[name];
}

void check_no_system(void) {
    knows_system = false;
}

/* What was the system's of `cpu`, where that is `most` at most. What was taken for user
 * time before the split was known stays that. */
static void check_system(uint64_t system, uint64_t most, uint64_t cpu) {
    CHECK(system <= (knows_system ? most : cpu));
}

/* Which of the model's nodes each of a profile's is. */
static void match(const struct sp_profile *profile, uint32_t *found) {
    CHECK(profile->count < MODEL_NODES);
    for (uint32_t n = 0; n < profile->count; n++) {
        const struct sp_node *node = &profile->nodes[n];
        uint32_t parent = node->parent >= 0 ? found[node->parent] : 0, m = 1;
        while (m < model.node_count && (model.nodes[m].parent != parent ||
                                        key_of(model.nodes[m].name) !=
                                            sp_key_make(node->callsite, node->labels)))
            m++;
        CHECK(m < model.node_count);
        found[n] = m;
    }
}

void check_profile(const struct sp_profile *profile) {
    uint32_t found[MODEL_NODES], called = 0;
    match(profile, found);
    for (uint32_t m = 1; m < model.node_count; m++)
        called += model.nodes[m].values.calls != 0;
    CHECK_EQUAL(called, profile->count);
    for (uint32_t n = 0; n < profile->count; n++) {
        const struct model_values *values = &model.nodes[found[n]].values;
        const int64_t *value = profile->nodes[n].value;
        CHECK_EQUAL(values->calls, value[SP_CALLS]);
        CHECK_EQUAL(values->busy, value[SP_WALL_BUSY]);
        CHECK_EQUAL(values->idle, value[SP_WALL_IDLE]);
        CHECK_EQUAL(values->cpu, value[SP_CPU_USER] + value[SP_CPU_SYSTEM]);
        check_system((uint64_t)value[SP_CPU_SYSTEM], values->system, values->cpu);
        CHECK_EQUAL(values->objects, value[SP_ALLOC_OBJECTS]);
        CHECK_EQUAL(values->space, value[SP_ALLOC_SPACE]);
    }
}

void check_snapshot(void) {
    struct sp_profile *profile = sp_snapshot();
    CHECK(profile != NULL);
    check_profile(profile);
    sp_profile_free(profile);
}

void check_delta(void) {
    struct sp_profile *more = sp_collect_delta(NULL);
    CHECK(more != NULL);
    uint32_t found[MODEL_NODES];
    match(more, found);
    for (uint32_t n = 0; n < more->count; n++) {
        const int64_t *value = more->nodes[n].value;
        for (int metric = 0; metric < SP_METRIC_COUNT; metric++)
            CHECK(value[metric] >= 0);
        struct model_values *sum = &told[found[n]];
        sum->calls += (uint64_t)value[SP_CALLS];
        sum->busy += (uint64_t)value[SP_WALL_BUSY];
        sum->idle += (uint64_t)value[SP_WALL_IDLE];
        sum->cpu += (uint64_t)(value[SP_CPU_USER] + value[SP_CPU_SYSTEM]);
        sum->system += (uint64_t)value[SP_CPU_SYSTEM];
        sum->objects += (uint64_t)value[SP_ALLOC_OBJECTS];
        sum->space += (uint64_t)value[SP_ALLOC_SPACE];
    }
    sp_profile_free(more);
    for (uint32_t m = 1; m < model.node_count; m++) {
        const struct model_values *values = &model.nodes[m].values;
        CHECK_EQUAL(values->calls, told[m].calls);
        CHECK_EQUAL(values->busy, told[m].busy);
        CHECK_EQUAL(values->idle, told[m].idle);
        CHECK_EQUAL(values->cpu, told[m].cpu);
        check_system(told[m].system, values->system, values->cpu);
        CHECK_EQUAL(values->objects, told[m].objects);
        CHECK_EQUAL(values->space, told[m].space);
    }
}

static struct model_span *span_of_id(uint64_t id) {
    for (unsigned n = 0; n < model.span_count; n++)
        if (model.spans[n].id == id && model.spans[n].session == model.session)
            return &model.spans[n];
    return NULL;
}

static bool is_recorded(const struct model_span *span) {
    return span->session == model.session && !span->out && !span->is_nobody;
}

static void check_record(const struct sp_feed_record *record) {
    struct model_span *span = span_of_id(record->id);
    CHECK(span != NULL && span->over && !span->told);
    span->told = true;
    int64_t offset = (int64_t)(sp_session_started_unix - sp_session_started_wall);
    CHECK_EQUAL(key_of(model.nodes[span->path].name),
                sp_key_make(record->callsite, record->labels));
    CHECK_EQUAL(span->parent_id, record->parent);
    CHECK_EQUAL(span->start, record->start - offset);
    CHECK_EQUAL(span->end, record->end - offset);
    CHECK_EQUAL(span->own.busy, record->wall_busy);
    CHECK_EQUAL(span->own.idle, record->wall_idle);
    CHECK_EQUAL(span->own.cpu, record->cpu_user + record->cpu_system);
    CHECK(record->cpu_system <= span->own.cpu);
    CHECK_EQUAL(span->own.objects, record->alloc_objects);
    CHECK_EQUAL(span->own.space, record->alloc_space);
    told_system[span->path] += record->cpu_system;
}

/* Spans that are not over are read in place (5.3). */
static void check_open(void) {
    struct sp_open_spans spans = {0};
    sp_feed_read_open(&spans);
    CHECK(spans.complete);
    for (size_t n = 0; n < spans.count; n++) {
        const struct sp_open_span *found = &spans.items[n];
        const struct model_span *span = span_of_id(found->id);
        CHECK(span != NULL && !span->over);
        CHECK_EQUAL(key_of(model.nodes[span->path].name),
                    sp_key_make(found->callsite, found->labels));
        CHECK_EQUAL(span->parent_id, found->parent);
        CHECK_EQUAL(span->own.busy, found->used.busy);
        CHECK_EQUAL(span->own.idle, found->idle);
        CHECK_EQUAL(span->own.cpu, found->used.cpu);
        CHECK(found->system <= span->own.cpu);
        CHECK_EQUAL(span->own.objects, found->used.objects);
        CHECK_EQUAL(span->own.space, found->used.space);
    }
    unsigned open = 0;
    for (unsigned n = 0; n < model.span_count; n++)
        open += is_recorded(&model.spans[n]) && !model.spans[n].over;
    CHECK_EQUAL(open, spans.count);
    sp_open_spans_free(&spans);
}

void check_feed(void) {
    check_open();
    struct sp_feed_batch *batch;
    while ((batch = sp_feed_take()) != NULL) {
        size_t count = batch->count;
        for (size_t n = 0; n < count; n++) check_record(&batch->records[n]);
        sp_feed_batch_free(batch);
        if (count == 0) break;
    }
    for (unsigned n = 0; n < model.span_count; n++)
        CHECK(!is_recorded(&model.spans[n]) ||
              model.spans[n].over == model.spans[n].told);
    for (uint32_t m = 1; m < model.node_count; m++)
        check_system(told_system[m], model.nodes[m].values.system,
                     model.nodes[m].values.cpu);
}
