/* Interned strings, callsites and label sets.
 *
 * Everything here lives until the process ends and never moves: ids and
 * pointers may be kept anywhere, also by profiles that outlive their session.
 * Looking up by id takes no lock; interning takes one, which is a leaf.
 * Strings are UTF-8 with a length: they may hold NUL and encoded surrogates
 * (writers clean them for their format). */
#ifndef SPANPROF_CORE_CALLSITE_H
#define SPANPROF_CORE_CALLSITE_H

#include "platform.h"

struct sp_string {
    uint32_t length;
    uint32_t hash;
    char bytes[]; /* `length` bytes and a NUL */
};

struct sp_callsite {
    const struct sp_string *name, *target, *file;
    uint32_t line;
    uint32_t offset; /* of the instruction in its code object, in bytes */
    uint32_t id;     /* index of the callsite, never 0 but for the folded one */
};

struct sp_label {
    const struct sp_string *key, *value;
};

struct sp_labels {
    uint32_t count;
    uint32_t hash;
    struct sp_label items[]; /* sorted by key */
};

/* Callsite 0 and string "(other)" stand for all that did not fit. */
#define SP_CALLSITE_OTHER 0u
#define SP_LABELS_NONE 0u

/* Most callsites in a process; beyond, names fold into "(other)". */
#define SP_MAX_CALLSITES 200000u

struct sp_text {
    const char *bytes;
    size_t length;
};

/* Ids of what is equal to the arguments, made if new. On a full table or out of
 * memory the folded one, counted in sp_stats. Any thread. */
uint32_t sp_callsite_intern(struct sp_text name, struct sp_text target,
                            struct sp_text file, uint32_t line, uint32_t offset);

/* `keys` must be distinct; they are sorted here. A key's values beyond
 * `max_values` distinct ones since sp_labels_begin become "(other)". */
uint32_t sp_labels_intern(const struct sp_text *keys, const struct sp_text *values,
                          uint32_t count, uint32_t max_values);

/* A new session counts distinct label values afresh. */
void sp_labels_begin(void);

const struct sp_callsite *sp_callsite_get(uint32_t id);
const struct sp_labels *sp_labels_get(uint32_t id);
uint32_t sp_callsite_count(void);
uint32_t sp_labels_count(void);

/* Fork: taken before, released after in the parent, made anew in the child. */
void sp_callsite_lock(void);
void sp_callsite_unlock(void);
void sp_callsite_relock_in_child(void);

#endif
