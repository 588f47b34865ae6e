/* The one table of what spanprof measures; every writer works from it.
 *
 * A metric is one stored number per node; a series is what users and files
 * show: a metric, or the sum of several. A new metric is a row in SP_METRICS
 * and one in SP_SERIES, and the line in span.c or profile.c that fills it. */
#ifndef SPANPROF_CORE_METRIC_H
#define SPANPROF_CORE_METRIC_H

#include <stddef.h>
#include <stdint.h>

/* How a metric's values of two stretches of time make up that of both. */
enum sp_nature {
    SP_SUM,   /* what happened: they add up */
    SP_LEVEL, /* what there was at the end: the later one */
    SP_PEAK,  /* the most that there was at any time: the higher one */
};

/*        id                name                nature   */
#define SP_METRICS(X)                           \
    X(CALLS, "calls", SP_SUM)                   \
    X(WALL_BUSY, "wall_busy", SP_SUM)           \
    X(WALL_IDLE, "wall_idle", SP_SUM)           \
    X(CPU_USER, "cpu_user", SP_SUM)             \
    X(CPU_SYSTEM, "cpu_system", SP_SUM)         \
    X(ALLOC_OBJECTS, "alloc_objects", SP_SUM)   \
    X(ALLOC_SPACE, "alloc_space", SP_SUM)       \
    X(INUSE_OBJECTS, "inuse_objects", SP_LEVEL) \
    X(INUSE_SPACE, "inuse_space", SP_LEVEL)     \
    X(INUSE_PEAK_SPACE, "inuse_peak_space", SP_PEAK)

enum sp_metric {
#define X(id, name, nature) SP_##id,
    SP_METRICS(X)
#undef X
        SP_METRIC_COUNT,
    SP_METRIC_SUMS = SP_INUSE_OBJECTS /* those before it are all that add up */
};

/* Series measured and written together; the order of files and columns. */
enum sp_kind {
    SP_KIND_CALLS,
    SP_KIND_WALL,
    SP_KIND_CPU,
    SP_KIND_ALLOC,
    SP_KIND_HEAP,
    SP_KIND_COUNT
};

#define SP_BIT(n) (1u << (n))

/*    name             unit           kind           sum of metrics                  */
#define SP_SERIES(X)                                                                  \
    X("calls", "count", SP_KIND_CALLS, SP_BIT(SP_CALLS))                              \
    X("wall", "nanoseconds", SP_KIND_WALL,                                            \
      SP_BIT(SP_WALL_BUSY) | SP_BIT(SP_WALL_IDLE))                                    \
    X("wall_busy", "nanoseconds", SP_KIND_WALL, SP_BIT(SP_WALL_BUSY))                 \
    X("wall_idle", "nanoseconds", SP_KIND_WALL, SP_BIT(SP_WALL_IDLE))                 \
    X("cpu", "nanoseconds", SP_KIND_CPU, SP_BIT(SP_CPU_USER) | SP_BIT(SP_CPU_SYSTEM)) \
    X("cpu_system", "nanoseconds", SP_KIND_CPU, SP_BIT(SP_CPU_SYSTEM))                \
    X("cpu_user", "nanoseconds", SP_KIND_CPU, SP_BIT(SP_CPU_USER))                    \
    X("alloc_objects", "count", SP_KIND_ALLOC, SP_BIT(SP_ALLOC_OBJECTS))              \
    X("alloc_space", "bytes", SP_KIND_ALLOC, SP_BIT(SP_ALLOC_SPACE))                  \
    X("inuse_objects", "count", SP_KIND_HEAP, SP_BIT(SP_INUSE_OBJECTS))               \
    X("inuse_space", "bytes", SP_KIND_HEAP, SP_BIT(SP_INUSE_SPACE))                   \
    X("inuse_peak_space", "bytes", SP_KIND_HEAP, SP_BIT(SP_INUSE_PEAK_SPACE))

struct sp_series {
    const char *name;
    const char *unit;
    enum sp_kind kind;
    unsigned metrics; /* bits of enum sp_metric */
};

extern const char *const sp_metric_names[SP_METRIC_COUNT];
extern const enum sp_nature sp_metric_natures[SP_METRIC_COUNT];
extern const char *const sp_kind_names[SP_KIND_COUNT];
extern const struct sp_series sp_series[];
extern const size_t sp_series_count;

/* Sums wrap around: a profile that was read from a file may hold any number. */
static inline int64_t sp_sum(int64_t a, int64_t b) {
    return (int64_t)((uint64_t)a + (uint64_t)b);
}

/* The kind of that name, or -1. */
int sp_kind_find(const char *name);

/* The value of a series, given one value per metric. */
int64_t sp_series_value(const struct sp_series *series,
                        const int64_t values[SP_METRIC_COUNT]);

#endif
