#include "csvsum.h"

#include <errno.h>
#include <pthread.h>
#include <spanprof.h>
#include <stdlib.h>
#include <string.h>

struct part {
    const char *text, *end; /* whole lines */
    unsigned column;
    struct csv_sum sum;
    spanprof_parent parent; /* the span of who made the thread */
    pthread_t thread;
};

/* The text of a field is up to `end`, or to the next comma or line. */
static const char *field_of(const char *line, const char *end, unsigned column) {
    for (; column > 0; column--) {
        line = memchr(line, ',', (size_t)(end - line));
        if (line == NULL) return NULL;
        line++;
    }
    return line;
}

static void add_line(struct csv_sum *sum, const char *line, const char *end,
                     unsigned column) {
    char number[64];
    const char *field = field_of(line, end, column);
    sum->rows++;
    if (field == NULL) {
        sum->skipped++;
        return;
    }
    size_t length = 0;
    while (field + length < end && field[length] != ',' && length < sizeof number - 1)
        length++;
    memcpy(number, field, length);
    number[length] = '\0';
    char *rest;
    double value = strtod(number, &rest);
    if (rest == number)
        sum->skipped++;
    else
        sum->sum += value;
}

static void *parse(void *argument) {
    struct part *part = argument;
    SPANPROF_SPAN_UNDER("parse", &part->parent);
    for (const char *line = part->text; line < part->end;) {
        const char *end = memchr(line, '\n', (size_t)(part->end - line));
        if (end == NULL) end = part->end;
        add_line(&part->sum, line, end, part->column);
        line = end + 1;
    }
    return NULL;
}

static void split(struct part *parts, unsigned count, const char *text, size_t length) {
    SPANPROF_SPAN("split");
    const char *at = text, *end = text + length;
    for (unsigned i = 0; i < count; i++) {
        const char *to = text + length * (i + 1) / count;
        const char *newline =
            to < end && to > at ? memchr(to, '\n', (size_t)(end - to)) : NULL;
        parts[i].text = at;
        parts[i].end = at = newline != NULL ? newline + 1 : to > at ? end : at;
    }
}

int csv_sum(const char *text, size_t length, unsigned column, unsigned threads,
            struct csv_sum *result) {
    SPANPROF_SPAN("csv_sum");
    unsigned started = 0;
    int error = 0;
    struct part *parts = calloc(threads, sizeof *parts);
    if (parts == NULL) return ENOMEM;
    split(parts, threads, text, length);
    for (; started < threads && error == 0; started++) {
        struct part *part = &parts[started];
        part->column = column;
        part->parent = spanprof_current();
        error = pthread_create(&part->thread, NULL, parse, part);
        if (error != 0) break;
    }
    memset(result, 0, sizeof *result);
    for (unsigned i = 0; i < started; i++) {
        SPANPROF_SPAN("wait");
        pthread_join(parts[i].thread, NULL);
        result->sum += parts[i].sum.sum;
        result->rows += parts[i].sum.rows;
        result->skipped += parts[i].sum.skipped;
    }
    free(parts);
    return error;
}
