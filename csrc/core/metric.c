#include "metric.h"

#include <string.h>

const char *const sp_metric_names[SP_METRIC_COUNT] = {
#define X(id, name, nature) name,
    SP_METRICS(X)
#undef X
};

const enum sp_nature sp_metric_natures[SP_METRIC_COUNT] = {
#define X(id, name, nature) nature,
    SP_METRICS(X)
#undef X
};

const char *const sp_kind_names[SP_KIND_COUNT] = {"calls", "wall", "cpu", "alloc",
                                                  "heap"};

const struct sp_series sp_series[] = {
#define X(name, unit, kind, metrics) {name, unit, kind, metrics},
    SP_SERIES(X)
#undef X
};
const size_t sp_series_count = sizeof sp_series / sizeof sp_series[0];

int sp_kind_find(const char *name) {
    for (int kind = 0; kind < SP_KIND_COUNT; kind++)
        if (strcmp(name, sp_kind_names[kind]) == 0) return kind;
    return -1;
}

int64_t sp_series_value(const struct sp_series *series,
                        const int64_t values[SP_METRIC_COUNT]) {
    int64_t sum = 0;
    for (int metric = 0; metric < SP_METRIC_COUNT; metric++)
        if (series->metrics & SP_BIT(metric)) sum = sp_sum(sum, values[metric]);
    return sum;
}
