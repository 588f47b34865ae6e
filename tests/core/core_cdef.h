/* What the tests use of the core, for cffi in ABI mode. Layouts are repeated here
 * only where tests read them; test_layout.py compares their sizes and offsets. */

/* --- callsite.h ------------------------------------------------------------ */
struct sp_string {
    uint32_t length;
    uint32_t hash;
    char bytes[];
};
struct sp_callsite {
    const struct sp_string *name, *target, *file;
    uint32_t line;
    uint32_t offset;
    uint32_t id;
};
struct sp_label {
    const struct sp_string *key, *value;
};
struct sp_labels {
    uint32_t count;
    uint32_t hash;
    struct sp_label items[];
};
struct sp_text {
    const char *bytes;
    size_t length;
};
uint32_t sp_callsite_intern(struct sp_text name, struct sp_text target,
                            struct sp_text file, uint32_t line, uint32_t offset);
uint32_t sp_labels_intern(const struct sp_text *keys, const struct sp_text *values,
                          uint32_t count, uint32_t max_values);
void sp_labels_begin(void);
const struct sp_callsite *sp_callsite_get(uint32_t id);
const struct sp_labels *sp_labels_get(uint32_t id);
uint32_t sp_callsite_count(void);
uint32_t sp_labels_count(void);

/* --- calltree.h ------------------------------------------------------------ */
typedef uint64_t sp_key;
uint32_t sp_paths_count(void);
uint32_t sp_path_parent(uint32_t path);
sp_key sp_path_key(uint32_t path);

/* --- metric.h -------------------------------------------------------------- */
struct sp_series {
    const char *name;
    const char *unit;
    int kind;
    unsigned metrics;
};
size_t spt_series_count(void);
int sp_kind_find(const char *name);
int64_t sp_series_value(const struct sp_series *series, const int64_t *values);

/* --- profile.h ------------------------------------------------------------- */
struct sp_node {
    int32_t parent;
    uint32_t callsite;
    uint32_t labels;
    int64_t value[10];
};
struct sp_ages {
    int64_t space[6];
    uint8_t growing[6];
};
struct sp_profile {
    uint64_t start_unix;
    uint64_t duration;
    uint32_t kinds;
    uint32_t count;
    uint32_t room;
    int64_t heap_peak;
    uint64_t level_start, level_end;
    struct sp_ages *ages;
    uint64_t *span_ids;
    struct sp_node nodes[];
};
struct sp_profile *sp_profile_new(uint32_t count);
struct sp_profile *sp_profile_copy(const struct sp_profile *profile);
void sp_profile_free(struct sp_profile *profile);
struct sp_profile *sp_profile_merge(const struct sp_profile *a,
                                    const struct sp_profile *b, int sign);
int sp_profile_split(const struct sp_profile *profile, uint32_t most,
                     struct sp_profile **first, struct sp_profile **rest);
bool sp_profile_add_span_ids(struct sp_profile *profile);
bool sp_profile_prune(struct sp_profile *profile);
int64_t sp_profile_total(const struct sp_profile *profile,
                         const struct sp_series *series);

/* --- pprof.h --------------------------------------------------------------- */
int sp_pprof_encode(const struct sp_profile *profile, int kind, const char *program,
                    unsigned char **data, size_t *length);
int sp_pprof_decode(const unsigned char *data, size_t length,
                    struct sp_profile **profile);

/* --- span.h ---------------------------------------------------------------- */
struct sp_thread;
struct sp_span;
void sp_span_begin(struct sp_thread *thread, struct sp_span *span, sp_key key);
void sp_span_begin_under(struct sp_thread *thread, struct sp_span *span, sp_key key,
                         const struct sp_span *parent);
void sp_span_open(struct sp_thread *thread, struct sp_span *span, sp_key key,
                  const struct sp_span *parent);
void sp_span_enter(struct sp_thread *thread, struct sp_span *span);
int sp_span_decide(struct sp_thread *thread, const struct sp_span *parent);
void sp_span_begin_sampled_out(struct sp_thread *thread, struct sp_span *span);
void sp_span_open_sampled_out(struct sp_thread *thread, struct sp_span *span);
uint64_t sp_threads_sampled_out(void);
void sp_span_begin_at(struct sp_thread *thread, struct sp_span *span,
                      struct sp_site *site);
struct sp_span *sp_span_find(struct sp_thread *thread, const void *owner);
bool sp_span_exit(struct sp_thread *thread, struct sp_span *span);
void sp_span_close(struct sp_thread *thread, struct sp_span *span);
void sp_thread_end_detached(struct sp_thread *thread);

/* --- suspend.h, suspended.h -------------------------------------------------- */
bool sp_span_suspend(struct sp_thread *thread, struct sp_span *bottom, const void *key);
bool sp_span_resume(struct sp_thread *thread, struct sp_span *top);
bool sp_span_suspend_all(struct sp_thread *thread, const void *key, bool keeps_context);

/* --- native.h ------------------------------------------------------------------ */
struct sp_native;
struct sp_parent {
    uint64_t id;
    uint32_t path, generation;
};
struct sp_native *sp_native_begin(struct sp_thread *thread, const void *place,
                                  uint32_t callsite);
struct sp_native *sp_native_begin_under(struct sp_thread *thread, sp_key key,
                                        const struct sp_parent *parent);
void sp_native_end(struct sp_thread *thread, struct sp_native *native);
struct sp_parent sp_span_next_parent(const struct sp_thread *thread);
void sp_thread_leave(void);
void sp_span_abandon(struct sp_thread *thread, struct sp_span *span);
struct sp_span *sp_suspended_put(const void *key, struct sp_span *top,
                                 bool (*retain)(struct sp_span *), bool *kept);
struct sp_span *sp_suspended_take(const void *key, bool (*retain)(struct sp_span *));
bool sp_suspended_has(const void *key);
bool sp_suspended_remove(const void *key, struct sp_span *span);
void sp_suspended_refuse(bool refuse);
void sp_suspended_lock(void);
void sp_suspended_unlock(void);
uint64_t sp_suspended_count(void);

/* --- clock.h --------------------------------------------------------------- */
void sp_clock_setup(void);
int sp_clock_wall_kind(void);
int sp_clock_cpu_kind(void);
uint64_t sp_clock_wall(void);

/* --- publish.h -------------------------------------------------------------- */
struct sp_thread_context {
    uint64_t trace_id[2];
    uint64_t span_id;
    uint8_t valid;
    uint8_t trace_flags;
    uint16_t attributes_size;
};
bool sp_publish_trace_id(unsigned char trace_id[16]);

/* --- collector.h ------------------------------------------------------------ */
void sp_collector_lock(void);
void sp_collector_unlock(void);
bool sp_flush(int64_t timeout);
bool sp_stop(int64_t timeout, struct sp_profile **final);
struct sp_profile *sp_snapshot(void);
struct sp_profile *sp_collect_delta(struct sp_profile **cumulative);

/* --- support.c --------------------------------------------------------------- */
size_t spt_layout(const char *what);
int64_t spt_stat(const char *name);
void spt_free(void *memory);
void spt_callsites_make(uint32_t count);
void spt_note_coverage(void);
int64_t spt_memory_refuse(int64_t after, int64_t count);
const struct sp_series *spt_series(size_t index);
const char *spt_metric_name(size_t index);

void spt_publish(bool wanted);
void spt_clock_use(bool injected);
void spt_clock_set_wall(uint64_t wall);
void spt_clock_set(unsigned key, uint64_t cpu, uint64_t system);

int spt_start(bool wall, bool cpu, bool allocations, uint32_t max_nodes,
              uint32_t max_label_values);
uint32_t spt_generation(void);
extern uint64_t sp_session_started_wall;
extern uint64_t sp_session_started_unix;

struct sp_feed_record {
    uint64_t id, parent;
    int64_t start, end;
    uint64_t wall_busy, wall_idle, cpu_user, cpu_system;
    uint64_t alloc_objects, alloc_space;
    uint32_t callsite, labels;
    uint32_t thread;
    uint32_t generation;
};
struct sp_feed_batch {
    size_t count;
    size_t size;
    struct sp_feed_batch *next;
    struct sp_feed_record records[];
};
struct sp_feed_batch *sp_feed_take(void);
struct sp_feed_batch *sp_feed_peek(bool *all);
struct sp_feed_used {
    uint64_t busy, cpu, objects, space;
};
struct sp_open_span {
    uint64_t id, parent;
    uint32_t callsite, labels;
    struct sp_feed_used used;
    uint64_t idle, system;
};
struct sp_open_spans {
    size_t count, room;
    struct sp_open_span *items;
    bool complete;
};
void sp_feed_read_open(struct sp_open_spans *spans);
void sp_open_spans_free(struct sp_open_spans *spans);
void sp_feed_batch_free(struct sp_feed_batch *batch);
void spt_feed_limit(uint64_t limit);
void spt_sampler(int kind, double ratio, bool has_seed, uint64_t seed);
bool spt_span_is_sampled_out(const struct sp_span *span);

struct sp_roster;
struct sp_roster *sp_roster_new(bool with_heap);
void sp_roster_free(struct sp_roster *roster);
struct sp_span_update {
    uint64_t id;
    uint32_t what;
    uint32_t callsite, labels;
    uint32_t scope_start, scope_count;
    uint64_t wall_busy, wall_idle, cpu_user, cpu_system;
    uint64_t alloc_objects, alloc_space;
    uint64_t inuse_objects, inuse_space;
};
size_t spt_roster_round(struct sp_roster *roster, int kind);
const struct sp_span_update *spt_roster_updates(void);
const uint64_t *spt_roster_scopes(void);
/* --- arrow.h ---------------------------------------------------------------- */
struct ArrowSchema {
    const char *format;
    const char *name;
    const char *metadata;
    int64_t flags;
    int64_t n_children;
    struct ArrowSchema **children;
    struct ArrowSchema *dictionary;
    void (*release)(struct ArrowSchema *);
    void *private_data;
};
struct ArrowArray {
    int64_t length;
    int64_t null_count;
    int64_t offset;
    int64_t n_buffers;
    int64_t n_children;
    const void **buffers;
    struct ArrowArray **children;
    struct ArrowArray *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};
bool sp_arrow_schema(struct ArrowSchema *schema);
bool sp_arrow_array(const struct sp_feed_batch *batch, struct ArrowArray *array);

struct sp_thread *spt_thread_new(unsigned key);
struct sp_thread *spt_thread_ready(struct sp_thread *thread);
struct sp_thread *spt_thread_mine(void);
struct sp_context;
struct sp_context *spt_context_copy(const struct sp_thread *thread);
void spt_context_free(struct sp_context *context);
void spt_context_clear(struct sp_context *context);
void spt_thread_use_context(struct sp_thread *thread, struct sp_context *context);
void spt_thread_allocate(struct sp_thread *thread, uint64_t count, uint64_t bytes);
uint32_t spt_thread_cells(const struct sp_thread *thread);

int spt_start_heap(uint32_t max_nodes, uint64_t sample_bytes, bool by_span,
                   uint32_t max_closed);
int spt_start_memory(bool allocations, bool heap, uint32_t max_nodes,
                     uint64_t sample_bytes, bool by_span, uint32_t max_closed,
                     uint64_t heap_interval);
void spt_block_make(struct sp_thread *thread, uint64_t address, uint64_t size);
void spt_block_make_many(struct sp_thread *thread, uint64_t address, uint64_t step,
                         uint64_t count, uint64_t size);
void spt_block_undo(struct sp_thread *thread, uint64_t address, uint64_t size);
void spt_block_free(struct sp_thread *thread, uint64_t address);
bool spt_block_may_be_ours(uint64_t address);
void spt_block_move(struct sp_thread *thread, uint64_t old, uint64_t made,
                    uint64_t size);
void spt_block_move_fails(struct sp_thread *thread, uint64_t old, uint64_t size,
                          struct sp_thread *other, uint64_t others);
struct spt_walk {
    uint64_t now;
    uint64_t objects, space;
    uint32_t path;
};
void spt_heap_walk(uint32_t path, struct spt_walk *walk);
struct spt_live {
    uint64_t objects, space;
};
void spt_heap_live(struct spt_live *paths, uint32_t count);
void spt_block_churn(struct sp_thread *thread, uint64_t address, uint64_t rounds);
uint64_t spt_heap_now(void);
struct sp_heap_span_view {
    uint64_t id;
    uint32_t path;
    uint64_t objects, space;
    bool closed;
};
struct spt_owners {
    uint32_t count;
    struct sp_heap_span_view view[4096];
};
void spt_heap_spans(struct spt_owners *owners);
void sp_shadow_refuse(bool refuse);
uint64_t sp_shadow_mapped(void);
uint64_t sp_shadow_resident(void);
void sp_heap_seed(uint64_t seed);
void sp_heap_tick_slow(uint64_t wall);

struct sp_span *spt_span_new(void);
struct sp_site;
struct sp_site *spt_site_new(uint32_t callsite);
void spt_site_free(struct sp_site *site);
void spt_span_set_owner(struct sp_span *span, const void *owner);
void spt_span_free(struct sp_span *span);
void spt_spans_make(struct sp_thread *thread, sp_key key, uint64_t count);
int spt_span_state(const struct sp_span *span);
uint64_t spt_span_id(const struct sp_span *span);
uint32_t spt_span_path(const struct sp_span *span);
bool spt_span_skips(struct sp_thread *thread);
bool spt_span_is_suspended(const struct sp_span *span);
struct sp_span *spt_span_below(const struct sp_span *span);
void spt_span_link(struct sp_span *above, struct sp_span *below);
uint64_t spt_suspended_visit(void);
uint64_t spt_suspended_key_after(uint64_t key, uint64_t mask, uint64_t bits);
struct sp_span *spt_suspended_take_but(const void *key, const struct sp_span *span);
void spt_span_set_thrown_into(struct sp_span *span, const void *frame);
const void *spt_span_thrown_into(const struct sp_span *span);
struct sp_span *spt_take_released(void);

struct spt_readings {
    uint64_t backwards;
    uint64_t wall_error;
    uint64_t cpu_error;
    uint64_t cpu_elapsed, cpu_measured;
};
void spt_clock_trial(uint64_t count, bool want_cpu, struct spt_readings *readings);
uint64_t spt_burn(uint64_t nanos);
bool spt_rseq_is_live(void);
uint64_t spt_thread_cpu(void);

enum spt_deed { SPT_NOTHING, SPT_HANG, SPT_FLUSH, SPT_STOP, SPT_SNAPSHOT, SPT_SPAN };
struct spt_host;
struct spt_host *spt_host_new(enum spt_deed deed, sp_key key);
int spt_host_start(struct spt_host *host, uint64_t interval, bool want_profile);
int spt_host_start_fed(struct spt_host *host, uint64_t interval, bool want_spans,
                       bool want_updates);
int spt_host_go_on(struct spt_host *host);
void spt_host_release(struct spt_host *host);
uint64_t spt_host_seen(struct spt_host *host, const char *what);
struct sp_profile *spt_host_sum(struct spt_host *host);

/* --- publish_support.c ------------------------------------------------------- */
struct spt_samples {
    uint64_t taken, valid, wrong;
};
const struct sp_thread_context *spt_thread_context(const struct sp_thread *thread);
void spt_sample_spans(struct sp_thread *thread, sp_key key, uint64_t wanted,
                      struct spt_samples *samples);
