/* Spans as the columns of an Arrow record batch, by Arrow's C data interface: two
 * structs of pointers that any Arrow library takes over without a copy. No such library
 * is needed here. https://arrow.apache.org/docs/format/CDataInterface.html
 *
 * What is made here is its taker's: each struct, and each child that was moved out of
 * one, lives until its `release` is called, by any thread, with or without Python. */
#ifndef SPANPROF_CORE_ARROW_H
#define SPANPROF_CORE_ARROW_H

#include "feed_read.h"

/* As the specification has it, word for word: others define the same. */
#ifndef ARROW_C_DATA_INTERFACE
#define ARROW_C_DATA_INTERFACE

#define ARROW_FLAG_DICTIONARY_ORDERED 1
#define ARROW_FLAG_NULLABLE 2
#define ARROW_FLAG_MAP_KEYS_SORTED 4

struct ArrowSchema {
    // Array type description
    const char *format;
    const char *name;
    const char *metadata;
    int64_t flags;
    int64_t n_children;
    struct ArrowSchema **children;
    struct ArrowSchema *dictionary;

    // Release callback
    void (*release)(struct ArrowSchema *);
    // Opaque producer-specific data
    void *private_data;
};

struct ArrowArray {
    // Array data description
    int64_t length;
    int64_t null_count;
    int64_t offset;
    int64_t n_buffers;
    int64_t n_children;
    const void **buffers;
    struct ArrowArray **children;
    struct ArrowArray *dictionary;

    // Release callback
    void (*release)(struct ArrowArray *);
    // Opaque producer-specific data
    void *private_data;
};

#endif

/* The type of every batch's array: a struct with a child for each column, which
 * docs/guide/reporters.md lists. False out of memory; then `schema` is released. */
bool sp_arrow_schema(struct ArrowSchema *schema);

/* The batch's values, copied. False out of memory, or with more than 2 GiB of distinct
 * text in one column; then `array` is released. */
bool sp_arrow_array(const struct sp_feed_batch *batch, struct ArrowArray *array);

#endif
