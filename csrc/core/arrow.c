#include "arrow.h"

#include "arena.h"
#include "bigmem.h"
#include "callsite.h"
#include "table.h"
#include "utf8.h"

/* --- columns --------------------------------------------------------------- */

enum column {
    ID,
    PARENT,
    START,
    END,
    WALL_BUSY,
    WALL_IDLE,
    CPU_USER,
    CPU_SYSTEM,
    ALLOC_OBJECTS,
    ALLOC_SPACE,
    NAME,
    TARGET,
    FILE_NAME,
    LINE,
    LABELS,
    THREAD,
    COLUMN_COUNT
};

/* The children of the column of labels, and of their entries. */
enum { ENTRIES, LABEL_CHILDREN };
enum { KEY, VALUE, ENTRY_CHILDREN };

/* One pair of metadata, in the specification's encoding. */
struct unit {
    int32_t count, key_length;
    char key[4];
    int32_t value_length;
    char value[8];
};
static const struct unit in_ns = {1, 4, {'u', 'n', 'i', 't'}, 2, {'n', 's'}};
static const struct unit in_bytes = {
    1, 4, {'u', 'n', 'i', 't'}, 5, {'b', 'y', 't', 'e', 's'}};

/* Values with a unit are plain integers: durations of ns are not known, or are rounded,
 * where many want to read them (Parquet, SQL, Python's own types). */
#define FROM_RECORD(field, its_format, its_metadata)                    \
    {                                                                   \
        .name = #field, .format = its_format, .metadata = its_metadata, \
        .size = sizeof(((struct sp_feed_record *)NULL)->field),         \
        .offset = offsetof(struct sp_feed_record, field)                \
    }

/* Numbers into a dictionary are signed, as the specification recommends. */
#define DICTIONARY "i"

static const struct {
    const char *name, *format;
    const struct unit *metadata;
    size_t size, offset; /* in a record; size 0: not from there */
} columns[COLUMN_COUNT] = {
    [ID] = FROM_RECORD(id, "L", NULL),
    [PARENT] = FROM_RECORD(parent, "L", NULL),
    [START] = FROM_RECORD(start, "tsn:UTC", NULL),
    [END] = FROM_RECORD(end, "tsn:UTC", NULL),
    [WALL_BUSY] = FROM_RECORD(wall_busy, "L", &in_ns),
    [WALL_IDLE] = FROM_RECORD(wall_idle, "L", &in_ns),
    [CPU_USER] = FROM_RECORD(cpu_user, "L", &in_ns),
    [CPU_SYSTEM] = FROM_RECORD(cpu_system, "L", &in_ns),
    [ALLOC_OBJECTS] = FROM_RECORD(alloc_objects, "L", NULL),
    [ALLOC_SPACE] = FROM_RECORD(alloc_space, "L", &in_bytes),
    [NAME] = {.name = "name", .format = DICTIONARY},
    [TARGET] = {.name = "target", .format = DICTIONARY},
    [FILE_NAME] = {.name = "file", .format = DICTIONARY},
    [LINE] = {.name = "line", .format = "I"},
    [LABELS] = {.name = "labels", .format = "+m"},
    [THREAD] = FROM_RECORD(thread, "I", NULL),
};

/* --- the schema ------------------------------------------------------------ */

/* Of children that are there, those that were not moved out are released. */
static void drop_schema(struct ArrowSchema *schema) {
    if (schema != NULL && schema->release != NULL) schema->release(schema);
    free(schema);
}

static void release_schema(struct ArrowSchema *schema) {
    for (int64_t n = 0; n < schema->n_children; n++) drop_schema(schema->children[n]);
    free(schema->children);
    drop_schema(schema->dictionary);
    schema->release = NULL;
}

/* Texts must be constants. `schema` can be released whatever comes of it. */
static bool init_schema(struct ArrowSchema *schema, const char *name,
                        const char *format, size_t children) {
    *schema =
        (struct ArrowSchema){.format = format, .name = name, .release = release_schema};
    if (children == 0) return true;
    schema->children = calloc(children, sizeof(struct ArrowSchema *));
    if (schema->children == NULL) return false;
    schema->n_children = (int64_t)children;
    for (size_t n = 0; n < children; n++) {
        schema->children[n] = calloc(1, sizeof(struct ArrowSchema));
        if (schema->children[n] == NULL) return false;
    }
    return true;
}

static bool init_dictionary_schema(struct ArrowSchema *schema, const char *name) {
    if (!init_schema(schema, name, DICTIONARY, 0)) return false;
    schema->dictionary = calloc(1, sizeof(struct ArrowSchema));
    return schema->dictionary != NULL && init_schema(schema->dictionary, "", "u", 0);
}

/* A map, and not a dictionary of maps: that cannot be written to Parquet. */
static bool init_labels_schema(struct ArrowSchema *schema) {
    if (!init_schema(schema, columns[LABELS].name, columns[LABELS].format,
                     LABEL_CHILDREN))
        return false;
    struct ArrowSchema *entries = schema->children[ENTRIES];
    if (!init_schema(entries, "entries", "+s", ENTRY_CHILDREN)) return false;
    if (!init_dictionary_schema(entries->children[KEY], "key")) return false;
    if (!init_dictionary_schema(entries->children[VALUE], "value")) return false;
    entries->children[VALUE]->flags = ARROW_FLAG_NULLABLE; /* as all maps have it */
    return true;
}

static bool init_column_schema(struct ArrowSchema *schema, enum column column) {
    if (column == LABELS) return init_labels_schema(schema);
    if (column == NAME || column == TARGET || column == FILE_NAME)
        return init_dictionary_schema(schema, columns[column].name);
    if (!init_schema(schema, columns[column].name, columns[column].format, 0))
        return false;
    schema->metadata = (const char *)columns[column].metadata;
    if (column == PARENT) schema->flags = ARROW_FLAG_NULLABLE;
    return true;
}

bool sp_arrow_schema(struct ArrowSchema *schema) {
    bool done = init_schema(schema, "", "+s", COLUMN_COUNT);
    for (size_t n = 0; done && n < COLUMN_COUNT; n++)
        done = init_column_schema(schema->children[n], (enum column)n);
    if (!done) release_schema(schema);
    return done;
}

/* --- arrays ---------------------------------------------------------------- */

/* Each array has its own memory, so that a child can outlive the others. */
#define MOST_BUFFERS 3
struct owned {
    const void *buffers[MOST_BUFFERS];
    size_t sizes[MOST_BUFFERS];
};

static void drop_array(struct ArrowArray *array) {
    if (array != NULL && array->release != NULL) array->release(array);
    free(array);
}

static void release_array(struct ArrowArray *array) {
    struct owned *owned = array->private_data;
    for (size_t n = 0; owned != NULL && n < MOST_BUFFERS; n++)
        sp_big_free((void *)owned->buffers[n], owned->sizes[n]);
    free(owned);
    for (int64_t n = 0; n < array->n_children; n++) drop_array(array->children[n]);
    free(array->children);
    drop_array(array->dictionary);
    array->release = NULL;
}

/* `array` can be released whatever comes of it. */
static bool init_array(struct ArrowArray *array, size_t length, int64_t buffers,
                       size_t children) {
    struct owned *owned = calloc(1, sizeof *owned);
    *array = (struct ArrowArray){
        .length = (int64_t)length, .release = release_array, .private_data = owned};
    if (owned == NULL) return false;
    array->n_buffers = buffers;
    array->buffers = owned->buffers;
    if (children == 0) return true;
    array->children = calloc(children, sizeof(struct ArrowArray *));
    if (array->children == NULL) return false;
    array->n_children = (int64_t)children;
    for (size_t n = 0; n < children; n++) {
        array->children[n] = calloc(1, sizeof(struct ArrowArray));
        if (array->children[n] == NULL) return false;
    }
    return true;
}

static void *add_buffer(struct ArrowArray *array, size_t place, size_t size) {
    struct owned *owned = array->private_data;
    void *buffer = sp_big_alloc(size);
    owned->buffers[place] = buffer;
    owned->sizes[place] = size;
    return buffer;
}

/* An array with one buffer of values, which are 0; NULL out of memory. */
static void *init_values(struct ArrowArray *array, size_t length, size_t size) {
    if (!init_array(array, length, 2, 0)) return NULL;
    return add_buffer(array, 1, length * size);
}

/* --- dictionaries ---------------------------------------------------------- */

/* Distinct texts, as they are written. Number 0 ends a chain. */
struct text {
    const char *bytes;
    size_t length;
    uint32_t hash, next;
};
struct texts {
    struct sp_table table;
    struct text *items;
    uint32_t count, room; /* with number 0 */
    size_t length;        /* of all */
};

/* Room for the item of the next number, of a list that has none yet or some. */
static bool make_room(void *items, uint32_t *count, uint32_t *room, size_t size) {
    void **list = items;
    if (*count < *room) return true;
    if (*room > UINT32_MAX / 4) return false;
    uint32_t more = 2 * *room + 64;
    void *moved = realloc(*list, more * size);
    if (moved == NULL) return false;
    *list = moved;
    *room = more;
    if (*count == 0) *count = 1;
    return true;
}

/* As Arrow takes it; NULL bytes out of memory. */
static struct sp_text clean(struct sp_arena *arena, const struct sp_string *string) {
    struct sp_text text = {string->bytes, string->length};
    if (sp_utf8_is_clean(text.bytes, text.length)) return text;
    char *bytes = sp_arena_take(arena, SP_UTF8_ROOM(text.length), 1);
    if (bytes == NULL) return (struct sp_text){NULL, 0};
    char *end = sp_utf8_clean(bytes, text.bytes, text.length, true);
    return (struct sp_text){bytes, (size_t)(end - bytes)};
}

/* The text's place in the dictionary, from 0; -1 out of memory. */
static int32_t text_number(struct texts *texts, struct sp_arena *arena,
                           const struct sp_string *string) {
    struct sp_text text = clean(arena, string);
    if (text.bytes == NULL) return -1;
    uint32_t hash = sp_hash_bytes(text.bytes, text.length);
    for (uint32_t n = sp_table_first(&texts->table, hash); n != 0;
         n = texts->items[n].next)
        if (texts->items[n].hash == hash && texts->items[n].length == text.length &&
            memcmp(texts->items[n].bytes, text.bytes, text.length) == 0)
            return (int32_t)n - 1;
    if (!make_room(&texts->items, &texts->count, &texts->room, sizeof(struct text)))
        return -1;
    if (sp_table_full(&texts->table)) {
        if (!sp_table_grow(&texts->table)) return -1;
        for (uint32_t n = 1; n < texts->count; n++)
            texts->items[n].next =
                sp_table_push(&texts->table, texts->items[n].hash, n);
    }
    uint32_t number = texts->count++;
    texts->items[number] = (struct text){text.bytes, text.length, hash,
                                         sp_table_push(&texts->table, hash, number)};
    texts->length += text.length;
    return (int32_t)number - 1;
}

static bool add_dictionary(struct ArrowArray *array, const struct texts *texts) {
    array->dictionary = calloc(1, sizeof(struct ArrowArray));
    if (array->dictionary == NULL || texts->length > INT32_MAX) return false;
    size_t count = texts->count > 0 ? texts->count - 1 : 0;
    if (!init_array(array->dictionary, count, 3, 0)) return false;
    int32_t *offsets = add_buffer(array->dictionary, 1, (count + 1) * sizeof *offsets);
    char *bytes = add_buffer(array->dictionary, 2, texts->length);
    if (offsets == NULL || bytes == NULL) return false;
    size_t end = 0;
    for (size_t n = 0; n < count; n++) {
        const struct text *text = &texts->items[n + 1];
        memcpy(bytes + end, text->bytes, text->length);
        end += text->length;
        offsets[n + 1] = (int32_t)end;
    }
    return true;
}

static void free_texts(struct texts *texts) {
    sp_table_free(&texts->table);
    free(texts->items);
}

/* --- rows that are alike --------------------------------------------------- */

/* Which row had a number first: what was made of it there is copied in the others. */
struct first {
    uint32_t number, row, next;
};
struct firsts {
    struct sp_table table;
    struct first *items;
    uint32_t count, room; /* with number 0 */
};

static uint32_t hash_number(uint32_t number) {
    return (uint32_t)sp_mix(number + 0x9e3779b97f4a7c15u);
}

/* The row, if it is the first itself. False out of memory. */
static bool first_row(struct firsts *firsts, uint32_t number, size_t row,
                      size_t *first) {
    uint32_t hash = hash_number(number);
    for (uint32_t n = sp_table_first(&firsts->table, hash); n != 0;
         n = firsts->items[n].next) {
        if (firsts->items[n].number != number) continue;
        *first = firsts->items[n].row;
        return true;
    }
    if (!make_room(&firsts->items, &firsts->count, &firsts->room, sizeof(struct first)))
        return false;
    if (sp_table_full(&firsts->table)) {
        if (!sp_table_grow(&firsts->table)) return false;
        for (uint32_t n = 1; n < firsts->count; n++)
            firsts->items[n].next =
                sp_table_push(&firsts->table, hash_number(firsts->items[n].number), n);
    }
    uint32_t made = firsts->count++;
    firsts->items[made] = (struct first){number, (uint32_t)row,
                                         sp_table_push(&firsts->table, hash, made)};
    *first = row;
    return true;
}

static void free_firsts(struct firsts *firsts) {
    sp_table_free(&firsts->table);
    free(firsts->items);
}

/* --- columns of a batch ---------------------------------------------------- */

/* What is dropped when the array is made. */
struct builder {
    struct sp_arena arena;
    struct texts names, targets, files, keys, values;
    struct firsts callsites, label_sets;
};

static void free_builder(struct builder *b) {
    sp_arena_free(&b->arena);
    free_texts(&b->names);
    free_texts(&b->targets);
    free_texts(&b->files);
    free_texts(&b->keys);
    free_texts(&b->values);
    free_firsts(&b->callsites);
    free_firsts(&b->label_sets);
}

/* Sizes that the compiler knows. */
static void copy_field(char *to, const char *from, size_t size, size_t count) {
    if (size == 8)
        for (size_t n = 0; n < count; n++)
            memcpy(to + 8 * n, from + sizeof(struct sp_feed_record) * n, 8);
    else
        for (size_t n = 0; n < count; n++)
            memcpy(to + 4 * n, from + sizeof(struct sp_feed_record) * n, 4);
}

/* Records are copied a block at a time, which stays in the nearest cache meanwhile. */
#define BLOCK ((size_t)256)

static bool add_fields(const struct sp_feed_batch *batch,
                       struct ArrowArray **children) {
    char *to[COLUMN_COUNT] = {NULL};
    for (size_t c = 0; c < COLUMN_COUNT; c++) {
        if (columns[c].size == 0) continue;
        to[c] = init_values(children[c], batch->count, columns[c].size);
        if (to[c] == NULL) return false;
    }
    for (size_t begin = 0; begin < batch->count; begin += BLOCK) {
        size_t left = batch->count - begin, count = left < BLOCK ? left : BLOCK;
        const char *records = (const char *)&batch->records[begin];
        for (size_t c = 0; c < COLUMN_COUNT; c++)
            if (to[c] != NULL)
                copy_field(to[c] + begin * columns[c].size, records + columns[c].offset,
                           columns[c].size, count);
    }
    return true;
}

/* No parent is a null, not 0. */
static bool mark_parents(const struct sp_feed_batch *batch, struct ArrowArray *array) {
    uint8_t *valid = add_buffer(array, 0, (batch->count + 7) / 8);
    if (valid == NULL) return false;
    for (size_t n = 0; n < batch->count; n++) {
        bool has_parent = batch->records[n].parent != 0;
        valid[n / 8] |= (uint8_t)(has_parent << (n % 8));
        array->null_count += !has_parent;
    }
    return true;
}

static bool add_callsites(struct builder *b, const struct sp_feed_batch *batch,
                          struct ArrowArray **children) {
    size_t count = batch->count;
    int32_t *names = init_values(children[NAME], count, sizeof *names);
    int32_t *targets = init_values(children[TARGET], count, sizeof *targets);
    int32_t *files = init_values(children[FILE_NAME], count, sizeof *files);
    uint32_t *lines = init_values(children[LINE], count, sizeof *lines);
    if (names == NULL || targets == NULL || files == NULL || lines == NULL)
        return false;
    for (size_t n = 0; n < count; n++) {
        size_t first;
        uint32_t id = batch->records[n].callsite;
        if (!first_row(&b->callsites, id, n, &first)) return false;
        if (first == n) {
            const struct sp_callsite *callsite = sp_callsite_get(id);
            names[n] = text_number(&b->names, &b->arena, callsite->name);
            targets[n] = text_number(&b->targets, &b->arena, callsite->target);
            files[n] = text_number(&b->files, &b->arena, callsite->file);
            lines[n] = callsite->line;
            if (names[n] < 0 || targets[n] < 0 || files[n] < 0) return false;
        } else {
            names[n] = names[first];
            targets[n] = targets[first];
            files[n] = files[first];
            lines[n] = lines[first];
        }
    }
    return add_dictionary(children[NAME], &b->names) &&
           add_dictionary(children[TARGET], &b->targets) &&
           add_dictionary(children[FILE_NAME], &b->files);
}

/* Labels of all rows one after the other, and where those of each begin and end. */
struct label_columns {
    int32_t *offsets, *keys, *values;
};

static bool add_row_labels(struct builder *b, const struct label_columns *to,
                           size_t row, uint32_t id) {
    size_t first, begin = (size_t)to->offsets[row];
    const struct sp_labels *labels = sp_labels_get(id);
    if (!first_row(&b->label_sets, id, row, &first)) return false;
    to->offsets[row + 1] = (int32_t)(begin + labels->count);
    if (first != row) {
        size_t from = (size_t)to->offsets[first],
               size = labels->count * sizeof(int32_t);
        memcpy(to->keys + begin, to->keys + from, size);
        memcpy(to->values + begin, to->values + from, size);
        return true;
    }
    for (uint32_t n = 0; n < labels->count; n++) {
        const struct sp_label *label = &labels->items[n];
        int32_t key = text_number(&b->keys, &b->arena, label->key);
        int32_t value = text_number(&b->values, &b->arena, label->value);
        if (key < 0 || value < 0) return false;
        to->keys[begin + n] = key;
        to->values[begin + n] = value;
    }
    return true;
}

static bool add_labels(struct builder *b, const struct sp_feed_batch *batch,
                       struct ArrowArray *array) {
    size_t total = 0;
    for (size_t n = 0; n < batch->count; n++)
        total += sp_labels_get(batch->records[n].labels)->count;
    if (total > INT32_MAX) return false;
    if (!init_array(array, batch->count, 2, LABEL_CHILDREN)) return false;
    struct ArrowArray *entries = array->children[ENTRIES];
    if (!init_array(entries, total, 1, ENTRY_CHILDREN)) return false;
    struct label_columns to = {
        add_buffer(array, 1, (batch->count + 1) * sizeof(int32_t)),
        init_values(entries->children[KEY], total, sizeof(int32_t)),
        init_values(entries->children[VALUE], total, sizeof(int32_t)),
    };
    if (to.offsets == NULL || to.keys == NULL || to.values == NULL) return false;
    for (size_t n = 0; n < batch->count; n++)
        if (!add_row_labels(b, &to, n, batch->records[n].labels)) return false;
    return add_dictionary(entries->children[KEY], &b->keys) &&
           add_dictionary(entries->children[VALUE], &b->values);
}

bool sp_arrow_array(const struct sp_feed_batch *batch, struct ArrowArray *array) {
    struct builder builder = {0};
    bool done = init_array(array, batch->count, 1, COLUMN_COUNT) &&
                add_fields(batch, array->children) &&
                mark_parents(batch, array->children[PARENT]) &&
                add_callsites(&builder, batch, array->children) &&
                add_labels(&builder, batch, array->children[LABELS]);
    free_builder(&builder);
    if (!done) release_array(array);
    return done;
}
