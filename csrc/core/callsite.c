#include "callsite.h"

#include "slab.h"
#include "stats.h"
#include "table.h"

#include <pthread.h>

/* Everything below is written under `lock`. Items are published by their ids,
 * which reach other threads through the owner's own synchronisation. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

struct string_item {
    struct sp_string *string;
    uint32_t next;
    uint32_t values;  /* as a label's key: distinct values */
    uint32_t session; /* session that `values` belongs to */
};
struct callsite_item {
    struct sp_callsite callsite;
    uint32_t next;
};
struct labels_item {
    struct sp_labels *labels;
    uint32_t next;
};
/* (key, value) pairs seen in the current session, to bound a key's values. */
struct pair_item {
    const struct sp_string *key, *value;
    uint32_t next;
};

static struct sp_slab strings, callsites, labelsets, pairs;
static struct sp_table string_table, callsite_table, labels_table, pair_table;
static uint32_t string_count = 1, pair_count = 1; /* number 0 ends chains */
static _Atomic uint32_t callsite_count = 1, labels_count = 1;
static uint32_t label_session = 1;

static const struct sp_string other = {7, 0, {"(other)"}};
static const struct sp_string nothing = {0, 0, {""}};
static const struct sp_callsite callsite_other = {&other, &nothing, &nothing,
                                                  0,      0,        SP_CALLSITE_OTHER};
static const struct sp_labels labels_none = {0, 0};

static uint32_t hash_pointers(const void *a, const void *b, uint64_t c) {
    return (uint32_t)sp_mix(sp_mix((uintptr_t)a) ^ ((uintptr_t)b >> 4) ^ c);
}

/* --- strings -------------------------------------------------------------- */

static struct string_item *string_at(uint32_t number) {
    return sp_slab_at(&strings, number, sizeof(struct string_item));
}

static struct string_item *string_find_locked(struct sp_text text, uint32_t hash) {
    for (uint32_t n = sp_table_first(&string_table, hash); n != 0;
         n = string_at(n)->next) {
        struct sp_string *known = string_at(n)->string;
        if (known->hash == hash && known->length == text.length &&
            memcmp(known->bytes, text.bytes, text.length) == 0)
            return string_at(n);
    }
    return NULL;
}

static struct string_item *string_known_locked(struct sp_text text) {
    return string_find_locked(text, sp_hash_bytes(text.bytes, text.length));
}

static struct string_item *string_intern_locked(struct sp_text text) {
    if (text.length > UINT32_MAX / 2) return NULL;
    uint32_t hash = sp_hash_bytes(text.bytes, text.length);
    struct string_item *found = string_find_locked(text, hash);
    if (found != NULL) return found;
    if (sp_table_full(&string_table)) {
        if (!sp_table_grow(&string_table)) return NULL;
        for (uint32_t n = 1; n < string_count; n++)
            string_at(n)->next =
                sp_table_push(&string_table, string_at(n)->string->hash, n);
    }
    if (!sp_slab_reserve(&strings, string_count, sizeof(struct string_item)))
        return NULL;
    struct sp_string *string = malloc(sizeof *string + text.length + 1);
    if (string == NULL) return NULL;
    string->length = (uint32_t)text.length;
    string->hash = hash;
    memcpy(string->bytes, text.bytes, text.length);
    string->bytes[text.length] = '\0';
    uint32_t number = string_count++;
    struct string_item *item = string_at(number);
    *item = (struct string_item){string, 0, 0, 0};
    item->next = sp_table_push(&string_table, hash, number);
    return item;
}

/* --- callsites ------------------------------------------------------------ */

static struct callsite_item *callsite_at(uint32_t number) {
    return sp_slab_at(&callsites, number, sizeof(struct callsite_item));
}

static uint32_t hash_callsite(const struct sp_callsite *c) {
    return hash_pointers(c->name, c->file, ((uint64_t)c->line << 32) ^ c->offset) ^
           (uint32_t)((uintptr_t)c->target >> 4);
}

static uint32_t callsite_intern_locked(struct sp_text name, struct sp_text target,
                                       struct sp_text file, uint32_t line,
                                       uint32_t offset) {
    uint32_t number = atomic_load_explicit(&callsite_count, memory_order_relaxed);
    /* On a full table only known callsites are found: nothing more is kept. */
    struct string_item *(*string)(struct sp_text) =
        number < SP_MAX_CALLSITES ? string_intern_locked : string_known_locked;
    struct string_item *names = string(name);
    struct string_item *targets = string(target);
    struct string_item *files = string(file);
    if (names == NULL || targets == NULL || files == NULL) return SP_CALLSITE_OTHER;
    struct sp_callsite wanted = {names->string, targets->string, files->string,
                                 line,          offset,          number};
    uint32_t hash = hash_callsite(&wanted);
    for (uint32_t n = sp_table_first(&callsite_table, hash); n != 0;
         n = callsite_at(n)->next) {
        const struct sp_callsite *c = &callsite_at(n)->callsite;
        if (c->name == wanted.name && c->target == wanted.target &&
            c->file == wanted.file && c->line == line && c->offset == offset)
            return n;
    }
    if (number >= SP_MAX_CALLSITES) return SP_CALLSITE_OTHER;
    if (sp_table_full(&callsite_table)) {
        if (!sp_table_grow(&callsite_table)) return SP_CALLSITE_OTHER;
        for (uint32_t n = 1; n < number; n++)
            callsite_at(n)->next = sp_table_push(
                &callsite_table, hash_callsite(&callsite_at(n)->callsite), n);
    }
    if (!sp_slab_reserve(&callsites, number, sizeof(struct callsite_item)))
        return SP_CALLSITE_OTHER;
    struct callsite_item *item = callsite_at(number);
    item->callsite = wanted;
    item->next = sp_table_push(&callsite_table, hash, number);
    atomic_store_explicit(&callsite_count, number + 1, memory_order_release);
    return number;
}

uint32_t sp_callsite_intern(struct sp_text name, struct sp_text target,
                            struct sp_text file, uint32_t line, uint32_t offset) {
    pthread_mutex_lock(&lock);
    uint32_t id = callsite_intern_locked(name, target, file, line, offset);
    pthread_mutex_unlock(&lock);
    if (id == SP_CALLSITE_OTHER) sp_count(&sp_stats.callsites_folded);
    return id;
}

const struct sp_callsite *sp_callsite_get(uint32_t id) {
    if (id == SP_CALLSITE_OTHER) return &callsite_other;
    return &callsite_at(id)->callsite;
}

uint32_t sp_callsite_count(void) {
    return atomic_load_explicit(&callsite_count, memory_order_acquire) - 1;
}

/* --- labels --------------------------------------------------------------- */

static struct labels_item *labels_at(uint32_t number) {
    return sp_slab_at(&labelsets, number, sizeof(struct labels_item));
}
static struct pair_item *pair_at(uint32_t number) {
    return sp_slab_at(&pairs, number, sizeof(struct pair_item));
}

static bool pair_known_locked(const struct sp_string *key,
                              const struct sp_string *value, uint32_t hash) {
    for (uint32_t n = sp_table_first(&pair_table, hash); n != 0; n = pair_at(n)->next)
        if (pair_at(n)->key == key && pair_at(n)->value == value) return true;
    return false;
}

static bool pair_add_locked(const struct sp_string *key, const struct sp_string *value,
                            uint32_t hash) {
    if (sp_table_full(&pair_table)) {
        if (!sp_table_grow(&pair_table)) return false;
        for (uint32_t n = 1; n < pair_count; n++)
            pair_at(n)->next = sp_table_push(
                &pair_table, hash_pointers(pair_at(n)->key, pair_at(n)->value, 0), n);
    }
    if (!sp_slab_reserve(&pairs, pair_count, sizeof(struct pair_item))) return false;
    uint32_t number = pair_count++;
    *pair_at(number) =
        (struct pair_item){key, value, sp_table_push(&pair_table, hash, number)};
    return true;
}

/* The value as interned, or "(other)" if the key has had `max_values` in this
 * session. A value that does not fit leaves no trace, or the bound were none. */
static const struct sp_string *
value_intern_locked(struct string_item *key, struct sp_text text, uint32_t max_values) {
    if (key->session != label_session) {
        key->session = label_session;
        key->values = 0;
    }
    struct string_item *value =
        string_find_locked(text, sp_hash_bytes(text.bytes, text.length));
    if (value != NULL &&
        pair_known_locked(key->string, value->string,
                          hash_pointers(key->string, value->string, 0)))
        return value->string;
    if (key->values < max_values) {
        if (value == NULL) value = string_intern_locked(text);
        if (value != NULL &&
            pair_add_locked(key->string, value->string,
                            hash_pointers(key->string, value->string, 0))) {
            key->values++;
            return value->string;
        }
    }
    sp_count(&sp_stats.labels_folded);
    return &other;
}

static int compare_labels(const void *a, const void *b) {
    const struct sp_string *x = ((const struct sp_label *)a)->key;
    const struct sp_string *y = ((const struct sp_label *)b)->key;
    uint32_t shorter = x->length < y->length ? x->length : y->length;
    int order = memcmp(x->bytes, y->bytes, shorter);
    if (order != 0) return order;
    return (x->length > y->length) - (x->length < y->length);
}

static bool same_labels(const struct sp_labels *a, const struct sp_labels *b) {
    return a->hash == b->hash && a->count == b->count &&
           memcmp(a->items, b->items, a->count * sizeof a->items[0]) == 0;
}

/* Takes `wanted`, which it keeps or frees. */
static uint32_t labelset_intern_locked(struct sp_labels *wanted) {
    for (uint32_t n = sp_table_first(&labels_table, wanted->hash); n != 0;
         n = labels_at(n)->next) {
        if (same_labels(labels_at(n)->labels, wanted)) {
            free(wanted);
            return n;
        }
    }
    uint32_t number = atomic_load_explicit(&labels_count, memory_order_relaxed);
    bool room = true;
    if (sp_table_full(&labels_table)) {
        room = sp_table_grow(&labels_table);
        for (uint32_t n = 1; room && n < number; n++)
            labels_at(n)->next =
                sp_table_push(&labels_table, labels_at(n)->labels->hash, n);
    }
    if (!room || !sp_slab_reserve(&labelsets, number, sizeof(struct labels_item))) {
        free(wanted);
        return SP_LABELS_NONE;
    }
    *labels_at(number) = (struct labels_item){
        wanted, sp_table_push(&labels_table, wanted->hash, number)};
    atomic_store_explicit(&labels_count, number + 1, memory_order_release);
    return number;
}

static uint32_t labels_intern_locked(const struct sp_text *keys,
                                     const struct sp_text *values, uint32_t count,
                                     uint32_t max_values) {
    struct sp_labels *wanted = malloc(sizeof *wanted + count * sizeof wanted->items[0]);
    if (wanted == NULL) return SP_LABELS_NONE;
    wanted->count = count;
    for (uint32_t i = 0; i < count; i++) {
        struct string_item *key = string_intern_locked(keys[i]);
        if (key == NULL) {
            free(wanted);
            return SP_LABELS_NONE;
        }
        const struct sp_string *value = value_intern_locked(key, values[i], max_values);
        wanted->items[i] = (struct sp_label){key->string, value};
    }
    qsort(wanted->items, count, sizeof wanted->items[0], compare_labels);
    wanted->hash = 0;
    for (uint32_t i = 0; i < count; i++)
        wanted->hash = hash_pointers(wanted->items[i].key, wanted->items[i].value,
                                     (uint64_t)wanted->hash << 32);
    return labelset_intern_locked(wanted);
}

uint32_t sp_labels_intern(const struct sp_text *keys, const struct sp_text *values,
                          uint32_t count, uint32_t max_values) {
    if (count == 0) return SP_LABELS_NONE;
    pthread_mutex_lock(&lock);
    uint32_t id = labels_intern_locked(keys, values, count, max_values);
    pthread_mutex_unlock(&lock);
    if (id == SP_LABELS_NONE) sp_count(&sp_stats.out_of_memory);
    return id;
}

void sp_labels_begin(void) {
    pthread_mutex_lock(&lock);
    label_session++;
    pair_count = 1;
    sp_table_clear(&pair_table);
    pthread_mutex_unlock(&lock);
}

const struct sp_labels *sp_labels_get(uint32_t id) {
    return id == SP_LABELS_NONE ? &labels_none : labels_at(id)->labels;
}

uint32_t sp_labels_count(void) {
    return atomic_load_explicit(&labels_count, memory_order_acquire) - 1;
}

/* --- fork ----------------------------------------------------------------- */

void sp_callsite_lock(void) {
    pthread_mutex_lock(&lock);
}
void sp_callsite_unlock(void) {
    pthread_mutex_unlock(&lock);
}
void sp_callsite_relock_in_child(void) {
    lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}
