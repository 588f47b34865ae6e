#include "profile.h"

#include "bigmem.h"
#include "table.h"

#include <stdlib.h>
#include <string.h>

static size_t size_for(uint32_t count) {
    return sizeof(struct sp_profile) + (size_t)count * sizeof(struct sp_node);
}

struct sp_profile *sp_profile_new(uint32_t count) {
    struct sp_profile *profile = sp_big_alloc(size_for(count));
    if (profile != NULL) profile->count = profile->room = count;
    return profile;
}

struct sp_profile *sp_profile_copy(const struct sp_profile *profile) {
    struct sp_profile *result = sp_profile_new(profile->count);
    if (result == NULL) return NULL;
    memcpy(result, profile, size_for(profile->count));
    result->room = profile->count;
    result->ages = NULL;
    result->span_ids = NULL;
    if (profile->ages == NULL) return result;
    if (!sp_profile_add_ages(result)) {
        sp_profile_free(result);
        return NULL;
    }
    memcpy(result->ages, profile->ages, profile->count * sizeof *profile->ages);
    return result;
}

bool sp_profile_add_ages(struct sp_profile *profile) {
    if (profile->ages == NULL)
        profile->ages = sp_big_alloc(profile->room * sizeof *profile->ages);
    return profile->ages != NULL;
}

void sp_profile_drop_ages(struct sp_profile *profile) {
    sp_big_free(profile->ages, profile->room * sizeof *profile->ages);
    profile->ages = NULL;
}

bool sp_profile_add_span_ids(struct sp_profile *profile) {
    if (profile->span_ids == NULL)
        profile->span_ids = sp_big_alloc(profile->room * sizeof *profile->span_ids);
    return profile->span_ids != NULL;
}

void sp_profile_free(struct sp_profile *profile) {
    if (profile == NULL) return;
    sp_profile_drop_ages(profile);
    sp_big_free(profile->span_ids, profile->room * sizeof *profile->span_ids);
    sp_big_free(profile, size_for(profile->room));
}

bool sp_node_empty(const struct sp_node *node) {
    for (int i = 0; i < SP_METRIC_COUNT; i++)
        if (node->value[i] != 0) return false;
    return true;
}

int64_t sp_profile_total(const struct sp_profile *profile,
                         const struct sp_series *series) {
    int64_t total = 0;
    for (uint32_t n = 0; n < profile->count; n++)
        total = sp_sum(total, sp_series_value(series, profile->nodes[n].value));
    return total;
}

bool sp_profile_prune(struct sp_profile *profile) {
    uint32_t count = profile->count;
    int32_t *moved = calloc(count + 1u, sizeof *moved);
    if (moved == NULL) return false;
    for (uint32_t n = count; n-- > 0;) {
        const struct sp_node *node = &profile->nodes[n];
        if (moved[n] == 0 && sp_node_empty(node)) continue;
        moved[n] = 1;
        if (node->parent >= 0) moved[node->parent] = 1;
    }
    uint32_t kept = 0;
    for (uint32_t n = 0; n < count; n++) {
        if (!moved[n]) continue;
        struct sp_node node = profile->nodes[n];
        if (node.parent >= 0) node.parent = moved[node.parent];
        moved[n] = (int32_t)kept;
        if (profile->ages != NULL) profile->ages[kept] = profile->ages[n];
        profile->nodes[kept++] = node;
    }
    profile->count = kept;
    free(moved);
    return true;
}

/* --- arithmetic ----------------------------------------------------------- */

struct merger {
    struct sp_profile *result;
    struct sp_table table;
    uint32_t *next;
};

static uint32_t hash_node(int32_t parent, uint32_t callsite, uint32_t labels) {
    return (uint32_t)sp_mix(sp_key_make(callsite, labels) +
                            ((uint64_t)(uint32_t)parent << 17));
}

/* The result's node of that stack, made with zero values if new. Node n is
 * number n + 1 in the table. -1 out of memory. */
static int32_t merger_node(struct merger *m, int32_t parent, uint32_t callsite,
                           uint32_t labels) {
    uint32_t hash = hash_node(parent, callsite, labels);
    struct sp_node *nodes = m->result->nodes;
    for (uint32_t n = sp_table_first(&m->table, hash); n != 0; n = m->next[n]) {
        const struct sp_node *node = &nodes[n - 1];
        if (node->parent == parent && node->callsite == callsite &&
            node->labels == labels)
            return (int32_t)(n - 1);
    }
    if (sp_table_full(&m->table)) {
        if (!sp_table_grow(&m->table)) return -1;
        for (uint32_t n = 1; n <= m->result->count; n++)
            m->next[n] =
                sp_table_push(&m->table,
                              hash_node(nodes[n - 1].parent, nodes[n - 1].callsite,
                                        nodes[n - 1].labels),
                              n);
    }
    uint32_t number = ++m->result->count;
    nodes[number - 1] = (struct sp_node){parent, callsite, labels, {0}};
    m->next[number] = sp_table_push(&m->table, hash, number);
    return (int32_t)(number - 1);
}

/* Which of two profiles has the levels of both. */
enum levels { LEVELS_ADD, LEVELS_OF_A, LEVELS_OF_B };

static bool is_same_time(const struct sp_profile *a, const struct sp_profile *b) {
    return a->level_start == b->level_start && a->level_end == b->level_end;
}

static enum levels choose_levels(const struct sp_profile *a, const struct sp_profile *b,
                                 int sign) {
    bool in_a = a->kinds & SP_BIT(SP_KIND_HEAP), in_b = b->kinds & SP_BIT(SP_KIND_HEAP);
    if (sign < 0 || (in_a == in_b && (!in_a || is_same_time(a, b)))) return LEVELS_ADD;
    if (in_a != in_b) return in_a ? LEVELS_OF_A : LEVELS_OF_B;
    if (a->level_end <= b->level_start) return LEVELS_OF_B;
    return b->level_end <= a->level_start ? LEVELS_OF_A : LEVELS_ADD;
}

static void add_ages(struct sp_ages *sum, const struct sp_ages *ages) {
    for (unsigned k = 0; k < SP_AGE_CLASSES; k++) {
        sum->space[k] = sp_sum(sum->space[k], ages->space[k]);
        if (ages->growing[k] > sum->growing[k]) sum->growing[k] = ages->growing[k];
    }
}

/* One of the two profiles that are merged. */
struct part {
    const struct sp_profile *profile;
    int sign;
    bool has_levels; /* its levels count */
    bool levels_add; /* and so do the other's, and peaks add up */
};

static void add_value(int64_t *sum, int64_t value, int metric,
                      const struct part *part) {
    enum sp_nature nature = sp_metric_natures[metric];
    if (nature == SP_LEVEL && !part->has_levels) return;
    if (nature == SP_PEAK && !part->levels_add) {
        if (value > *sum) *sum = value;
        return;
    }
    *sum = sp_sum(*sum, part->sign < 0 ? (int64_t)(0 - (uint64_t)value) : value);
}

static bool merger_add(struct merger *m, const struct part *part) {
    const struct sp_profile *profile = part->profile;
    int32_t *place = malloc((profile->count + 1u) * sizeof *place);
    if (place == NULL) return false;
    for (uint32_t n = 0; n < profile->count; n++) {
        const struct sp_node *node = &profile->nodes[n];
        int32_t parent = node->parent < 0 ? -1 : place[node->parent];
        place[n] = merger_node(m, parent, node->callsite, node->labels);
        if (place[n] < 0) {
            free(place);
            return false;
        }
        for (int i = 0; i < SP_METRIC_COUNT; i++)
            add_value(&m->result->nodes[place[n]].value[i], node->value[i], i, part);
        if (profile->ages != NULL && m->result->ages != NULL && part->has_levels)
            add_ages(&m->result->ages[place[n]], &profile->ages[n]);
    }
    free(place);
    return true;
}

static void merge_times(struct sp_profile *result, const struct sp_profile *a,
                        const struct sp_profile *b, int sign) {
    uint64_t a_end = a->start_unix + a->duration;
    uint64_t b_end = b->start_unix + b->duration;
    uint64_t end = a_end;
    if (sign > 0) {
        result->start_unix =
            a->start_unix < b->start_unix ? a->start_unix : b->start_unix;
        if (b_end > end) end = b_end;
    } else {
        /* Later minus earlier of one session; else the first one's own time. */
        bool nested = a->start_unix == b->start_unix && b_end <= a_end;
        result->start_unix = nested ? b_end : a->start_unix;
    }
    result->duration = end - result->start_unix;
}

/* The time of the levels, and what is of all nodes together. */
static bool merge_levels(struct sp_profile *result, const struct part *a,
                         const struct part *b) {
    const struct sp_profile *x = a->profile, *y = b->profile;
    const struct sp_profile *chosen = a->has_levels ? x : y;
    result->level_start = chosen->level_start;
    result->level_end = chosen->level_end;
    if (a->has_levels && b->has_levels && a->levels_add && b->sign > 0) {
        if (y->level_start < result->level_start) result->level_start = y->level_start;
        if (y->level_end > result->level_end) result->level_end = y->level_end;
    }
    add_value(&result->heap_peak, x->heap_peak, SP_INUSE_PEAK_SPACE, a);
    /* Parts of one profile have different nodes, but both have what is of all. */
    struct part of_all = *b;
    if (b->sign > 0 && is_same_time(x, y)) of_all.levels_add = false;
    add_value(&result->heap_peak, y->heap_peak, SP_INUSE_PEAK_SPACE, &of_all);
    bool with_ages = b->sign > 0 && ((a->has_levels && x->ages != NULL) ||
                                     (b->has_levels && y->ages != NULL));
    return !with_ages || sp_profile_add_ages(result);
}

struct sp_profile *sp_profile_merge(const struct sp_profile *a,
                                    const struct sp_profile *b, int sign) {
    uint32_t most = a->count + b->count;
    struct merger m = {
        sp_profile_new(most), {NULL, 0, 0}, malloc((most + 1u) * sizeof(uint32_t))};
    bool done = m.result != NULL && m.next != NULL;
    if (done) {
        m.result->count = 0;
        m.result->kinds = a->kinds | b->kinds;
        merge_times(m.result, a, b, sign);
        enum levels levels = choose_levels(a, b, sign);
        /* Where one of them has no levels, adding is taking the other's. */
        bool add =
            levels == LEVELS_ADD || !(a->kinds & b->kinds & SP_BIT(SP_KIND_HEAP));
        struct part first = {a, 1, levels != LEVELS_OF_B, add};
        struct part second = {b, sign, levels != LEVELS_OF_A, add};
        done = merge_levels(m.result, &first, &second) && merger_add(&m, &first) &&
               merger_add(&m, &second) && sp_profile_prune(m.result);
    }
    sp_table_free(&m.table);
    free(m.next);
    if (!done) {
        sp_profile_free(m.result);
        return NULL;
    }
    return m.result;
}

struct weighed {
    double weight;
    uint32_t node;
};

static int heavier_first(const void *a, const void *b) {
    const struct weighed *x = a, *y = b;
    if (x->weight != y->weight) return x->weight < y->weight ? 1 : -1;
    return (x->node > y->node) - (x->node < y->node);
}

static uint32_t weigh(const struct sp_profile *profile, struct weighed *weighed) {
    double total[SP_METRIC_COUNT] = {0};
    for (uint32_t n = 0; n < profile->count; n++)
        for (int i = 0; i < SP_METRIC_COUNT; i++)
            total[i] += (double)profile->nodes[n].value[i];
    uint32_t count = 0;
    for (uint32_t n = 0; n < profile->count; n++) {
        if (sp_node_empty(&profile->nodes[n])) continue;
        double weight = 0;
        for (int i = 0; i < SP_METRIC_COUNT; i++) {
            if (sp_metric_natures[i] == SP_PEAK) continue; /* of no more weight */
            double share =
                total[i] > 0 ? (double)profile->nodes[n].value[i] / total[i] : 0;
            if (share > weight) weight = share;
        }
        weighed[count++] = (struct weighed){weight, n};
    }
    qsort(weighed, count, sizeof *weighed, heavier_first);
    return count;
}

int sp_profile_split(const struct sp_profile *profile, uint32_t most,
                     struct sp_profile **first, struct sp_profile **rest) {
    *first = *rest = NULL;
    struct weighed *weighed = malloc((profile->count + 1u) * sizeof *weighed);
    if (weighed == NULL) return -1;
    uint32_t count = weigh(profile, weighed);
    bool done = (*first = sp_profile_copy(profile)) != NULL;
    if (done && count > most) {
        done = (*rest = sp_profile_copy(profile)) != NULL;
        for (uint32_t i = 0; done && i < count; i++) {
            struct sp_profile *other = i < most ? *rest : *first;
            uint32_t node = weighed[i].node;
            memset(other->nodes[node].value, 0, sizeof other->nodes[0].value);
            if (other->ages != NULL)
                memset(&other->ages[node], 0, sizeof other->ages[0]);
        }
        done = done && sp_profile_prune(*first) && sp_profile_prune(*rest);
    }
    free(weighed);
    if (done) return 0;
    sp_profile_free(*first);
    sp_profile_free(*rest);
    *first = *rest = NULL;
    return -1;
}
