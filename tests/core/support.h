/* What support.c has for tests in C. */
#ifndef SPANPROF_TESTS_CORE_SUPPORT_H
#define SPANPROF_TESTS_CORE_SUPPORT_H

#include "../../csrc/core/heap_span.h"
#include "../../csrc/core/native.h"

int64_t spt_stat(const char *name);

/* The injected clock; keys are those of threads. */
void spt_clock_use(bool injected);
void spt_clock_set_wall(uint64_t wall);
void spt_clock_set(unsigned key, uint64_t cpu, uint64_t system);
void spt_clock_set_quick(struct sp_thread *thread, bool quick);

/* Sessions. Settings hold for those that are started from then on. */
void spt_feed_limit(uint64_t limit);
void spt_sampler(int kind, double ratio, bool has_seed, uint64_t seed);
int spt_start(bool wall, bool cpu, bool allocations, uint32_t max_nodes,
              uint32_t max_label_values);
int spt_start_memory(bool allocations, bool heap, uint32_t max_nodes,
                     uint64_t sample_bytes, bool by_span, uint32_t max_closed,
                     uint64_t heap_interval);

/* Threads, of which the calling one plays all. */
struct sp_thread *spt_thread_new(unsigned key);
struct sp_thread *spt_thread_ready(struct sp_thread *thread);
void spt_thread_allocate(struct sp_thread *thread, uint64_t count, uint64_t bytes);
struct sp_context *spt_context_copy(const struct sp_thread *thread);
void spt_context_free(struct sp_context *context);
void spt_context_clear(struct sp_context *context);
void spt_thread_use_context(struct sp_thread *thread, struct sp_context *context);

/* Blocks, as the allocation hooks do it. */
void spt_block_make(struct sp_thread *thread, uint64_t address, uint64_t size);
void spt_block_undo(struct sp_thread *thread, uint64_t address, uint64_t size);
void spt_block_free(struct sp_thread *thread, uint64_t address);
void spt_block_move(struct sp_thread *thread, uint64_t old, uint64_t made,
                    uint64_t size);
struct spt_live {
    uint64_t objects, space;
};
void spt_heap_live(struct spt_live *paths, uint32_t count);
struct spt_owners {
    uint32_t count;
    struct sp_heap_span_view view[4096];
};
void spt_heap_spans(struct spt_owners *owners);

/* Spans. */
struct sp_span *spt_span_new(void);
void spt_span_free(struct sp_span *span);
struct sp_span *spt_take_released(void);
void spt_native_end(struct sp_thread *thread, struct sp_native *native);

#endif
