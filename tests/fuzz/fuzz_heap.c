/* Blocks that are made, moved and freed, at any address and of any size, by any thread:
 * what the core says is in use by node and by span, and what the shadow map holds, is
 * what a table of blocks says. */
#include "input.h"

#include "../../csrc/core/callsite.h"
#include "../../csrc/core/collector.h"
#include "../core/support.h"

#include <string.h>

#define THREADS 2u
#define DEPTH 6u
#define NAMES 3u
#define BLOCKS 48u
#define PATHS 256u
#define SPANS 256u
#define MOST_STEPS 300u

#define BASE UINT64_C(0x7f0000000000)
#define LEAF (UINT64_C(64) << 20) /* of address space, for one part of the map */
#define SECOND UINT64_C(1000000000)

/* One for each address below: where a block is, or none. `of_session` 0: nobody's. */
struct block {
    bool is_there;
    uint32_t of_session, path;
    uint64_t span, size;
};

struct model_span {
    uint64_t id;
    uint32_t path, of_session;
    bool closed;
    struct sp_span *real;
};

struct values {
    uint64_t objects, space;
};

static const uint64_t sizes[] = {0,
                                 1,
                                 8,
                                 16,
                                 511,
                                 512,
                                 4096,
                                 (16 << 10) - 1,
                                 16 << 10,
                                 100000,
                                 0xfffffe,
                                 0xffffff,
                                 0x1000000,
                                 0x1000001,
                                 0xffffffff,
                                 UINT64_C(1) << 32,
                                 UINT64_C(5) << 30};
static const uint64_t jumps[] = {1, 9, 50, 599, 3000, 32767, 40000, 65536, 1000000};

static sp_key keys[NAMES];
static uint64_t addresses[BLOCKS];
static struct block blocks[BLOCKS];
static struct sp_thread *threads[THREADS];
static struct model_span *stack[THREADS][DEPTH];
static unsigned depth[THREADS];
static uint32_t joined[THREADS]; /* the session that the thread has a state of */
static struct model_span spans[SPANS];
static unsigned span_count;
static struct values allocated[PATHS]; /* of the running session, by path */
static uint64_t wall = 1000000;
static bool counts, tracks, by_span,
    refused;             /* the running session's, but for the last */
static uint32_t session; /* 0: none runs */

/* --- the model
 * ------------------------------------------------------------------------ */

static struct model_span *charged(unsigned t) {
    struct model_span *top = depth[t] > 0 ? stack[t][depth[t] - 1] : NULL;
    return top != NULL && session != 0 && top->of_session == session && counts ? top
                                                                               : NULL;
}

/* Allocated by the span, or by nobody; `lost`: the map has no memory for it. */
static void was_made(unsigned t, unsigned slot, uint64_t size, bool lost) {
    struct model_span *span = charged(t);
    blocks[slot] = (struct block){.is_there = true, .size = size};
    CHECK(!lost || (refused && span != NULL));
    if (span == NULL) return;
    allocated[span->path].objects++;
    allocated[span->path].space += size;
    if (!tracks || lost) return;
    blocks[slot].of_session = session;
    blocks[slot].path = span->path;
    blocks[slot].span = span->id;
}

static bool is_live(const struct block *block) {
    return block->is_there && block->of_session != 0 && block->of_session == session;
}

static struct values in_use(uint32_t path, uint64_t span) {
    struct values sum = {0};
    for (unsigned n = 0; n < BLOCKS; n++) {
        const struct block *block = &blocks[n];
        if (!is_live(block)) continue;
        if (span != 0 ? block->span != span : block->path != path) continue;
        sum.objects++;
        sum.space += block->size;
    }
    return sum;
}

/* --- readings
 * ---------------------------------------------------------------------------- */

static uint32_t path_of(const uint32_t *paths, const struct sp_node *node) {
    uint32_t parent = node->parent >= 0 ? paths[node->parent] : SP_PATH_ROOT;
    for (uint32_t path = 1; path < sp_paths_count(); path++)
        if (sp_path_parent(path) == parent &&
            sp_path_key(path) == sp_key_make(node->callsite, node->labels))
            return path;
    abort();
}

static void check_nodes(const struct sp_profile *profile) {
    uint32_t paths[PATHS];
    uint64_t objects = 0;
    CHECK(profile->count < PATHS);
    for (uint32_t n = 0; n < profile->count; n++) {
        const int64_t *value = profile->nodes[n].value;
        uint32_t path = paths[n] = path_of(paths, &profile->nodes[n]);
        struct values live = in_use(path, 0);
        objects += live.objects;
        CHECK_EQUAL(allocated[path].objects, value[SP_ALLOC_OBJECTS]);
        CHECK_EQUAL(allocated[path].space, value[SP_ALLOC_SPACE]);
        CHECK_EQUAL(live.objects, value[SP_INUSE_OBJECTS]);
        CHECK_EQUAL(live.space, value[SP_INUSE_SPACE]);
        CHECK(value[SP_INUSE_PEAK_SPACE] >= value[SP_INUSE_SPACE]);
    }
    for (unsigned n = 0; n < BLOCKS; n++) objects -= is_live(&blocks[n]);
    CHECK_EQUAL(0, objects); /* no node is missing */
}

static void check_map(void) {
    struct spt_live live[PATHS];
    uint32_t count = sp_paths_count();
    CHECK(count <= PATHS);
    spt_heap_live(live, count);
    for (uint32_t path = 1; path < count; path++) {
        struct values expected = in_use(path, 0);
        CHECK_EQUAL(expected.objects, live[path].objects);
        CHECK_EQUAL(expected.space, live[path].space);
    }
}

/* Spans that own blocks; those that run may be among them if they did. */
static void check_owners(void) {
    static struct spt_owners owners;
    spt_heap_spans(&owners);
    for (uint32_t n = 0; n < owners.count; n++) {
        const struct sp_heap_span_view *view = &owners.view[n];
        unsigned s = 0;
        while (s < span_count && spans[s].id != view->id) s++;
        CHECK(s < span_count);
        struct values expected = in_use(0, view->id);
        CHECK_EQUAL(expected.objects, view->objects);
        CHECK_EQUAL(expected.space, view->space);
        CHECK_EQUAL(spans[s].closed, view->closed);
        CHECK(!view->closed || view->objects > 0);
    }
    for (unsigned s = 0; s < span_count; s++) {
        if (in_use(0, spans[s].id).objects == 0) continue;
        uint32_t n = 0;
        while (n < owners.count && owners.view[n].id != spans[s].id) n++;
        CHECK(n < owners.count);
    }
}

/* To walk the whole map takes as long as many inputs. */
static void check(bool with_map) {
    if (session == 0) return;
    struct sp_profile *profile = sp_snapshot();
    CHECK(profile != NULL);
    check_nodes(profile);
    sp_profile_free(profile);
    if (tracks && with_map) check_map();
    if (by_span) check_owners();
}

/* --- steps
 * --------------------------------------------------------------------------------- */

static void advance(uint64_t nanos) {
    wall += nanos;
    spt_clock_set_wall(wall);
    sp_heap_tick_slow(wall);
}

static void start(uint8_t how) {
    if (session != 0) return;
    counts = how % 8 != 7;
    tracks = counts && how % 8 != 6;
    by_span = tracks && how % 2 == 1;
    CHECK_EQUAL(0, spt_start_memory(counts, tracks, 1000, 0, by_span, 1000, 0));
    session = sp_session_running();
    memset(allocated, 0, sizeof allocated);
}

static void stop(void) {
    if (session == 0) return;
    struct sp_profile *last = NULL;
    sp_stop(-1, &last);
    CHECK(last != NULL);
    check_nodes(last);
    sp_profile_free(last);
    session = 0;
}

static struct sp_thread *turn(unsigned t) {
    struct sp_thread *thread = spt_thread_ready(threads[t]);
    if (session != 0 && joined[t] != session) {
        joined[t] = session;
        depth[t] = 0;
    }
    return thread;
}

static void begin(unsigned t, sp_key key) {
    struct sp_thread *thread = turn(t);
    if (thread == NULL || depth[t] == DEPTH || span_count == SPANS) return;
    struct model_span *span = &spans[span_count++];
    span->real = spt_span_new();
    sp_span_begin(thread, span->real, key);
    span->id = span->real->id;
    span->path = span->real->path;
    span->of_session = session;
    span->closed = false;
    CHECK(span->path < PATHS);
    stack[t][depth[t]++] = span;
}

static void end(unsigned t) {
    struct sp_thread *thread = turn(t);
    if (depth[t] == 0) return;
    struct model_span *span = stack[t][--depth[t]];
    CHECK(sp_span_exit(thread, span->real));
    span->closed = true;
}

/* The slot from `choice` on that holds a block, or that holds none. */
static bool find_slot(unsigned choice, bool is_there, unsigned *slot) {
    for (unsigned n = 0; n < BLOCKS; n++) {
        *slot = (choice + n) % BLOCKS;
        if (blocks[*slot].is_there == is_there) return true;
    }
    return false;
}

static bool was_lost(int64_t before) {
    return spt_stat("heap_untracked") != before;
}

static void make(unsigned t, unsigned slot, uint64_t size, bool undo) {
    int64_t before = spt_stat("heap_untracked");
    bool mine = charged(t) != NULL;
    spt_block_make(threads[t], addresses[slot], size);
    bool lost = was_lost(before);
    /* As if it had not been: of those that are small, charged, and followed. */
    if (undo && size < SP_PUBLISH_STEP && mine && tracks && !lost)
        spt_block_undo(threads[t], addresses[slot], size);
    else
        was_made(t, slot, size, lost);
}

/* To the same place, to another one, or it fails. */
static void move(unsigned t, unsigned slot, uint8_t how, uint64_t size) {
    unsigned to = slot;
    bool fails = how % 4 == 0;
    if (how % 4 == 1 && !find_slot(how / 4u, false, &to)) return;
    int64_t before = spt_stat("heap_untracked");
    spt_block_move(threads[t], addresses[slot], fails ? 0 : addresses[to], size);
    bool lost = was_lost(before);
    if (fails) {
        CHECK(!lost || refused);
        if (lost) blocks[slot].of_session = 0; /* it did not fit where it was */
        return;
    }
    blocks[slot].is_there = false;
    was_made(t, to, size, lost);
}

/* By a thread, or by one that the core has never seen. */
static void free_block(unsigned who, unsigned slot) {
    spt_block_free(who < THREADS ? threads[who] : NULL, addresses[slot]);
    blocks[slot].is_there = false;
}

static uint64_t take_size(struct input *input) {
    uint8_t choice = input_byte(input);
    if (choice < sizeof sizes / sizeof sizes[0]) return sizes[choice];
    return input_number(input, choice % 5);
}

static void step(struct input *input) {
    unsigned what = input_below(input, 20), t = what % THREADS, slot;
    uint8_t choice = input_byte(input);
    what /= THREADS;
    if (what <= 2) {
        if (find_slot(choice, false, &slot))
            make(t, slot, take_size(input), what == 2 && choice >= 128);
    } else if (what == 3) {
        if (find_slot(choice / (THREADS + 1), true, &slot))
            free_block(choice % (THREADS + 1), slot);
    } else if (what == 4) {
        uint8_t how = input_byte(input);
        if (find_slot(choice, true, &slot)) move(t, slot, how, take_size(input));
    } else if (what == 5) {
        begin(t, keys[choice % NAMES]);
    } else if (what == 6) {
        end(t);
    } else if (what == 7) {
        check(false);
    } else if (what == 8) {
        advance(jumps[choice % (sizeof jumps / sizeof jumps[0])] * SECOND);
    } else if (choice < 64) {
        stop();
        start(input_byte(input));
    } else if (choice < 96) {
        refused = choice % 2;
        sp_shadow_refuse(refused);
    } else if (find_slot(choice, false, &slot)) {
        free_block(t, slot); /* nobody has heard of it */
    }
}

/* --- the program
 * --------------------------------------------------------------------------- */

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    const struct sp_text none = {"", 0};
    for (uint32_t n = 0; n < NAMES; n++) {
        struct sp_text name = {&"abc"[n], 1};
        keys[n] =
            sp_key_make(sp_callsite_intern(name, none, none, 0, 0), SP_LABELS_NONE);
    }
    /* As tight as they come; on both sides of a leaf's end; the map's ends, and past
     * them. */
    static const uint64_t ends[] = {8,
                                    16,
                                    LEAF - 16,
                                    (UINT64_C(1) << 47) - 16,
                                    (UINT64_C(1) << 48) - 16,
                                    (UINT64_C(1) << 48) - 8,
                                    UINT64_C(1) << 48,
                                    (UINT64_C(1) << 48) + 24,
                                    (UINT64_C(1) << 56) + 16,
                                    (UINT64_C(1) << 63) + 64};
    unsigned count = 0;
    for (; count < 22; count++) addresses[count] = BASE + 8 * count;
    for (; count < 38; count++) addresses[count] = BASE + LEAF - 64 + 8 * (count - 22);
    for (unsigned n = 0; n < sizeof ends / sizeof ends[0]; n++)
        addresses[count++] = ends[n];
    CHECK_EQUAL(BLOCKS, count);
    spt_clock_set_wall(wall);
    spt_clock_use(true);
    spt_take_released();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, data + size};
    span_count = 0;
    start(input_byte(&input));
    for (unsigned t = 0; t < THREADS; t++) {
        spt_clock_set(t + 1, 0, 0);
        threads[t] = spt_thread_new(t + 1);
        depth[t] = joined[t] = 0;
    }
    for (unsigned n = 0; n < MOST_STEPS && !input_is_over(&input); n++) step(&input);
    check(true);

    sp_shadow_refuse(refused = false);
    for (unsigned n = 0; n < BLOCKS; n++)
        if (blocks[n].is_there) free_block(n % (THREADS + 1), n);
    check(true);
    stop();
    for (unsigned t = 0; t < THREADS; t++) sp_thread_end_detached(threads[t]);
    for (unsigned n = 0; n < span_count; n++) {
        if (sp_span_state(spans[n].real) == SP_SPAN_ENTERED)
            sp_span_exit(NULL, spans[n].real);
        spt_span_free(spans[n].real);
    }
    return 0;
}
