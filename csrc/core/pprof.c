#include "pprof.h"

#include "arena.h"
#include "callsite.h"
#include "profile.pb-c.h"
#include "table.h"
#include "utf8.h"

#include <zlib.h>

typedef Spanprof__Pprof__Profile Profile;
typedef Spanprof__Pprof__ValueType ValueType;
typedef Spanprof__Pprof__Sample Sample;
typedef Spanprof__Pprof__Label Label;
typedef Spanprof__Pprof__Mapping Mapping;
typedef Spanprof__Pprof__Location Location;
typedef Spanprof__Pprof__Line Line;
typedef Spanprof__Pprof__Function Function;

/* What a reader shows first, of each kind. */
static const char *const default_series[SP_KIND_COUNT] = {"calls", "wall", "cpu",
                                                          "alloc_space", "inuse_space"};

/* More than any profile of ours, less than a gzip bomb. */
#define MOST_DECODED ((size_t)1 << 30)

/* --- encoder ----------------------------------------------------------------- */

struct string_entry {
    char *text;
    uint32_t hash;
    uint32_t next;
};

struct encoder {
    struct sp_arena arena;
    Profile message;
    struct sp_table string_table;
    struct string_entry *strings; /* number 0 is the empty string */
    uint32_t string_count, string_room;
    uint64_t *location_of; /* by callsite id: location id, 0 if none yet */
    bool failed;           /* memory ran out somewhere */
};

static void *take(struct encoder *e, size_t count, size_t size) {
    void *memory = sp_arena_take(&e->arena, count, size);
    if (memory == NULL) e->failed = true;
    return memory;
}

static uint32_t hash_text(const char *text) {
    uint64_t hash = 14695981039346656037u;
    for (; *text != '\0'; text++) hash = sp_mix(hash ^ (unsigned char)*text);
    return (uint32_t)hash;
}

/* Index in the string table of a text that lives as long as the arena. */
static int64_t string_of(struct encoder *e, char *text) {
    if (text == NULL) {
        e->failed = true;
        return 0;
    }
    if (text[0] == '\0') return 0;
    uint32_t hash = hash_text(text);
    for (uint32_t n = sp_table_first(&e->string_table, hash); n != 0;
         n = e->strings[n].next)
        if (e->strings[n].hash == hash && strcmp(e->strings[n].text, text) == 0)
            return n;
    if (e->string_count == e->string_room) {
        uint32_t room = 2 * e->string_room + 64;
        struct string_entry *more = realloc(e->strings, room * sizeof *more);
        if (more == NULL) {
            e->failed = true;
            return 0;
        }
        e->strings = more;
        e->string_room = room;
        if (e->string_count == 0) {
            e->strings[0] = (struct string_entry){(char *)"", 0, 0};
            e->string_count = 1;
        }
    }
    if (sp_table_full(&e->string_table)) {
        if (!sp_table_grow(&e->string_table)) {
            e->failed = true;
            return 0;
        }
        for (uint32_t n = 1; n < e->string_count; n++)
            e->strings[n].next = sp_table_push(&e->string_table, e->strings[n].hash, n);
    }
    uint32_t number = e->string_count++;
    e->strings[number] = (struct string_entry){
        text, hash, sp_table_push(&e->string_table, hash, number)};
    return number;
}

static int64_t constant_of(struct encoder *e, const char *text) {
    return string_of(e, (char *)text);
}

static int64_t interned_of(struct encoder *e, const struct sp_string *string) {
    char *text = take(e, SP_UTF8_ROOM(string->length), 1);
    if (text != NULL) sp_utf8_clean(text, string->bytes, string->length, false);
    return string_of(e, text);
}

static int64_t function_name_of(struct encoder *e, const struct sp_callsite *site) {
    if (site->target->length == 0) return interned_of(e, site->name);
    const struct sp_string *target = site->target, *name = site->name;
    char *text =
        take(e, SP_UTF8_ROOM(target->length) + 2 + SP_UTF8_ROOM(name->length), 1);
    if (text != NULL) {
        char *end = sp_utf8_clean(text, target->bytes, target->length, false);
        *end++ = ':';
        *end++ = ':';
        sp_utf8_clean(end, name->bytes, name->length, false);
    }
    return string_of(e, text);
}

/* The location of a callsite; made, with its function, at first sight. */
static uint64_t location_of(struct encoder *e, uint32_t callsite) {
    if (e->location_of[callsite] != 0) return e->location_of[callsite];
    const struct sp_callsite *site = sp_callsite_get(callsite);
    Function *function = take(e, 1, sizeof *function);
    Location *location = take(e, 1, sizeof *location);
    Line *line = take(e, 1, sizeof *line);
    Line **lines = take(e, 1, sizeof *lines);
    if (e->failed) return 0;
    uint64_t id = e->message.n_location + 1;

    spanprof__pprof__function__init(function);
    function->id = id;
    function->name = function_name_of(e, site);
    function->system_name = function->name;
    function->filename = interned_of(e, site->file);
    function->start_line = site->line;
    e->message.function[e->message.n_function++] = function;

    spanprof__pprof__line__init(line);
    line->function_id = id;
    line->line = site->line;
    lines[0] = line;
    spanprof__pprof__location__init(location);
    location->id = id;
    location->mapping_id = 1;
    location->n_line = 1;
    location->line = lines;
    e->message.location[e->message.n_location++] = location;
    e->location_of[callsite] = id;
    return id;
}

static ValueType *value_type(struct encoder *e, const struct sp_series *series) {
    ValueType *type = take(e, 1, sizeof *type);
    if (type == NULL) return NULL;
    spanprof__pprof__value_type__init(type);
    type->type = constant_of(e, series->name);
    type->unit = constant_of(e, series->unit);
    return type;
}

static Label *label_of(struct encoder *e, Sample *sample, int64_t key) {
    Label *label = take(e, 1, sizeof *label);
    if (label == NULL) return NULL;
    spanprof__pprof__label__init(label);
    label->key = key;
    sample->label[sample->n_label++] = label;
    return label;
}

/* The number of the span, and labels of the node and its ancestors; of one key the
 * innermost value. */
static void add_labels(struct encoder *e, Sample *sample,
                       const struct sp_profile *profile, int32_t node) {
    size_t most = 0;
    for (int32_t n = node; n >= 0; n = profile->nodes[n].parent)
        most += sp_labels_get(profile->nodes[n].labels)->count;
    most += profile->span_ids != NULL;
    if (most == 0) return;
    sample->label = take(e, most, sizeof *sample->label);
    if (sample->label == NULL) return;
    if (profile->span_ids != NULL) {
        Label *label = label_of(e, sample, constant_of(e, "span_id"));
        if (label == NULL) return;
        label->num = (int64_t)profile->span_ids[node];
    }
    for (int32_t n = node; n >= 0; n = profile->nodes[n].parent) {
        const struct sp_labels *labels = sp_labels_get(profile->nodes[n].labels);
        for (uint32_t i = 0; i < labels->count; i++) {
            int64_t key = interned_of(e, labels->items[i].key);
            bool hidden = false;
            for (size_t k = 0; k < sample->n_label; k++)
                hidden = hidden || sample->label[k]->key == key;
            if (hidden) continue;
            Label *label = label_of(e, sample, key);
            if (label == NULL) return;
            label->str = interned_of(e, labels->items[i].value);
        }
    }
}

static void add_sample(struct encoder *e, const struct sp_profile *profile,
                       int32_t node, enum sp_kind kind) {
    int64_t values[16];
    size_t count = 0;
    bool any = false;
    for (size_t s = 0; s < sp_series_count; s++) {
        if (sp_series[s].kind != kind) continue;
        values[count] = sp_series_value(&sp_series[s], profile->nodes[node].value);
        any = any || values[count] != 0;
        count++;
    }
    if (!any) return;

    size_t depth = 0;
    for (int32_t n = node; n >= 0; n = profile->nodes[n].parent) depth++;
    Sample *sample = take(e, 1, sizeof *sample);
    uint64_t *locations = take(e, depth, sizeof *locations);
    int64_t *kept = take(e, count, sizeof *kept);
    if (e->failed) return;
    spanprof__pprof__sample__init(sample);
    memcpy(kept, values, count * sizeof *kept);
    sample->n_value = count;
    sample->value = kept;
    sample->location_id = locations;
    for (int32_t n = node; n >= 0; n = profile->nodes[n].parent)
        locations[sample->n_location_id++] = location_of(e, profile->nodes[n].callsite);
    add_labels(e, sample, profile, node);
    e->message.sample[e->message.n_sample++] = sample;
}

static void add_header(struct encoder *e, const struct sp_profile *profile,
                       enum sp_kind kind, const char *program) {
    Profile *message = &e->message;
    message->sample_type = take(e, sp_series_count, sizeof *message->sample_type);
    message->mapping = take(e, 1, sizeof *message->mapping);
    Mapping *mapping = take(e, 1, sizeof *mapping);
    char *clean = take(e, SP_UTF8_ROOM(strlen(program)), 1);
    if (e->failed) return;
    sp_utf8_clean(clean, program, strlen(program), false);
    spanprof__pprof__mapping__init(mapping);
    mapping->id = 1;
    mapping->filename = string_of(e, clean);
    mapping->has_functions = mapping->has_filenames = true;
    mapping->has_line_numbers = mapping->has_inline_frames = true;
    message->mapping[0] = mapping;
    message->n_mapping = 1;

    for (size_t s = 0; s < sp_series_count; s++) {
        if (sp_series[s].kind != kind) continue;
        message->sample_type[message->n_sample_type++] = value_type(e, &sp_series[s]);
        if (strcmp(sp_series[s].name, default_series[kind]) == 0) {
            message->period_type = value_type(e, &sp_series[s]);
            message->default_sample_type = constant_of(e, sp_series[s].name);
        }
    }
    message->period = 1; /* nothing is sampled: each unit counts */
    message->time_nanos = (int64_t)profile->start_unix;
    message->duration_nanos = (int64_t)profile->duration;
}

static void fill(struct encoder *e, const struct sp_profile *profile, enum sp_kind kind,
                 const char *program) {
    uint32_t callsites = 0;
    for (uint32_t n = 0; n < profile->count; n++)
        if (profile->nodes[n].callsite >= callsites)
            callsites = profile->nodes[n].callsite + 1;
    e->location_of = take(e, callsites + 1u, sizeof *e->location_of);
    e->message.location = take(e, callsites + 1u, sizeof *e->message.location);
    e->message.function = take(e, callsites + 1u, sizeof *e->message.function);
    e->message.sample = take(e, profile->count + 1u, sizeof *e->message.sample);
    if (e->failed) return;
    add_header(e, profile, kind, program);
    for (uint32_t n = 0; n < profile->count && !e->failed; n++)
        add_sample(e, profile, (int32_t)n, kind);

    e->message.n_string_table = e->string_count;
    e->message.string_table = take(e, e->string_count, sizeof(char *));
    if (e->failed) return;
    for (uint32_t n = 0; n < e->string_count; n++)
        e->message.string_table[n] = e->strings[n].text;
}

/* gzip, as pprof expects it; *data is the caller's to free. */
static bool compress_gzip(const unsigned char *plain, size_t plain_length,
                          unsigned char **data, size_t *length) {
    z_stream stream = {0};
    if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, 15 + 16, 8,
                     Z_DEFAULT_STRATEGY) != Z_OK)
        return false;
    size_t room = deflateBound(&stream, (uLong)plain_length);
    *data = malloc(room);
    bool done = *data != NULL && plain_length <= UINT32_MAX && room <= UINT32_MAX;
    if (done) {
        stream.next_in = (Bytef *)plain;
        stream.avail_in = (uInt)plain_length;
        stream.next_out = *data;
        stream.avail_out = (uInt)room;
        done = deflate(&stream, Z_FINISH) == Z_STREAM_END;
        *length = room - stream.avail_out;
    }
    deflateEnd(&stream);
    if (!done) {
        free(*data);
        *data = NULL;
    }
    return done;
}

enum sp_pprof_status sp_pprof_encode(const struct sp_profile *profile,
                                     enum sp_kind kind, const char *program,
                                     unsigned char **data, size_t *length) {
    struct encoder e = {.message = SPANPROF__PPROF__PROFILE__INIT};
    *data = NULL;
    fill(&e, profile, kind, program);
    unsigned char *plain = NULL;
    if (!e.failed) {
        size_t size = spanprof__pprof__profile__get_packed_size(&e.message);
        plain = malloc(size + 1);
        if (plain != NULL) {
            spanprof__pprof__profile__pack(&e.message, plain);
            compress_gzip(plain, size, data, length);
        }
    }
    free(plain);
    free(e.strings);
    sp_table_free(&e.string_table);
    sp_arena_free(&e.arena);
    return *data != NULL ? SP_PPROF_OK : SP_PPROF_NO_MEMORY;
}

/* --- decoder ----------------------------------------------------------------- */

static enum sp_pprof_status decompress(const unsigned char *data, size_t length,
                                       unsigned char **plain, size_t *plain_length) {
    z_stream stream = {0};
    if (length > UINT32_MAX) return SP_PPROF_MALFORMED;
    if (inflateInit2(&stream, 15 + 16) != Z_OK) return SP_PPROF_NO_MEMORY;
    stream.next_in = (Bytef *)data;
    stream.avail_in = (uInt)length;
    size_t room = 4 * length + 4096, used = 0;
    enum sp_pprof_status status = SP_PPROF_NO_MEMORY;
    *plain = NULL;
    for (int result = Z_OK; result == Z_OK;) {
        unsigned char *more = realloc(*plain, room);
        if (more == NULL) break;
        *plain = more;
        stream.next_out = *plain + used;
        stream.avail_out = (uInt)(room - used);
        result = inflate(&stream, Z_NO_FLUSH);
        used = room - stream.avail_out;
        if (result == Z_STREAM_END) {
            status = SP_PPROF_OK;
        } else if (result != Z_OK || stream.avail_out != 0 || room >= MOST_DECODED) {
            status = SP_PPROF_MALFORMED;
            break;
        }
        room *= 2;
    }
    inflateEnd(&stream);
    *plain_length = used;
    if (status != SP_PPROF_OK) {
        free(*plain);
        *plain = NULL;
    }
    return status;
}

static const char *text_at(const Profile *message, int64_t index) {
    if (index < 0 || (uint64_t)index >= message->n_string_table) return "";
    return message->string_table[index];
}

static struct sp_text text_of(const char *bytes) {
    return (struct sp_text){bytes, strlen(bytes)};
}

/* Which metric a sample type is stored as, -1 for derived or unknown ones. */
static int metric_of(const char *name, unsigned *kinds) {
    int metric = -1;
    for (size_t s = 0; s < sp_series_count; s++) {
        if (strcmp(sp_series[s].name, name) != 0) continue;
        *kinds |= SP_BIT(sp_series[s].kind);
        for (int m = 0; m < SP_METRIC_COUNT; m++)
            if (sp_series[s].metrics == SP_BIT(m)) metric = m;
    }
    return metric;
}

static uint32_t callsite_of(const Profile *message, uint64_t location_id) {
    for (size_t i = 0; i < message->n_location; i++) {
        /* Ids are usually positions: look there first. */
        size_t at = (i + (size_t)location_id - 1) % message->n_location;
        const Location *location = message->location[at];
        if (location->id != location_id || location->n_line == 0) continue;
        const Line *line = location->line[0];
        for (size_t f = 0; f < message->n_function; f++) {
            size_t where = (f + (size_t)line->function_id - 1) % message->n_function;
            const Function *function = message->function[where];
            if (function->id != line->function_id) continue;
            const char *full = text_at(message, function->name);
            const char *colons = strstr(full, "::");
            if (colons == full) colons = NULL; /* of the name: there is no target */
            struct sp_text target = {full,
                                     colons != NULL ? (size_t)(colons - full) : 0};
            struct sp_text name = text_of(colons != NULL ? colons + 2 : full);
            return sp_callsite_intern(name, target,
                                      text_of(text_at(message, function->filename)),
                                      (uint32_t)line->line, UINT32_MAX);
        }
    }
    return SP_CALLSITE_OTHER;
}

static uint32_t labels_of(const Profile *message, const Sample *sample) {
    struct sp_text *keys = calloc(2 * sample->n_label + 1, sizeof *keys);
    if (keys == NULL) return SP_LABELS_NONE;
    struct sp_text *values = keys + sample->n_label;
    uint32_t count = 0;
    for (size_t i = 0; i < sample->n_label; i++) {
        if (sample->label[i]->str == 0) continue;
        keys[count] = text_of(text_at(message, sample->label[i]->key));
        values[count++] = text_of(text_at(message, sample->label[i]->str));
    }
    uint32_t labels = sp_labels_intern(keys, values, count, UINT32_MAX);
    free(keys);
    return labels;
}

/* One chain of nodes per sample; merging with nothing makes it a tree. */
static struct sp_profile *chains_of(const Profile *message, const int *metrics) {
    size_t count = 0;
    for (size_t i = 0; i < message->n_sample; i++)
        count += message->sample[i]->n_location_id;
    if (count >= INT32_MAX) return NULL;
    struct sp_profile *profile = sp_profile_new((uint32_t)count);
    if (profile == NULL) return NULL;
    int32_t next = 0;
    for (size_t i = 0; i < message->n_sample; i++) {
        const Sample *sample = message->sample[i];
        int32_t parent = -1;
        for (size_t l = sample->n_location_id; l-- > 0;) {
            profile->nodes[next] =
                (struct sp_node){parent,
                                 callsite_of(message, sample->location_id[l]),
                                 SP_LABELS_NONE,
                                 {0}};
            parent = next++;
        }
        if (parent < 0) continue;
        profile->nodes[parent].labels = labels_of(message, sample);
        for (size_t v = 0; v < sample->n_value && v < message->n_sample_type; v++)
            if (metrics[v] >= 0)
                profile->nodes[parent].value[metrics[v]] = sample->value[v];
    }
    return profile;
}

static enum sp_pprof_status build(const Profile *message, struct sp_profile **profile) {
    unsigned kinds = 0;
    bool ours = false;
    int *metrics = calloc(message->n_sample_type + 1, sizeof *metrics);
    if (metrics == NULL) return SP_PPROF_NO_MEMORY;
    for (size_t i = 0; i < message->n_sample_type; i++) {
        metrics[i] = metric_of(text_at(message, message->sample_type[i]->type), &kinds);
        ours = ours || metrics[i] >= 0;
    }
    enum sp_pprof_status status = ours ? SP_PPROF_NO_MEMORY : SP_PPROF_FOREIGN;
    struct sp_profile *nothing = sp_profile_new(0);
    struct sp_profile *chains = ours ? chains_of(message, metrics) : NULL;
    if (chains != NULL && nothing != NULL) {
        chains->start_unix = nothing->start_unix = (uint64_t)message->time_nanos;
        chains->duration = nothing->duration = (uint64_t)message->duration_nanos;
        chains->kinds = kinds;
        chains->level_start = chains->start_unix;
        chains->level_end = chains->start_unix + chains->duration;
        *profile = sp_profile_merge(chains, nothing, 1);
        if (*profile != NULL) status = SP_PPROF_OK;
    }
    sp_profile_free(chains);
    sp_profile_free(nothing);
    free(metrics);
    return status;
}

enum sp_pprof_status sp_pprof_decode(const unsigned char *data, size_t length,
                                     struct sp_profile **profile) {
    unsigned char *plain;
    size_t plain_length;
    *profile = NULL;
    enum sp_pprof_status status = decompress(data, length, &plain, &plain_length);
    if (status != SP_PPROF_OK) return status;
    Profile *message = spanprof__pprof__profile__unpack(NULL, plain_length, plain);
    free(plain);
    if (message == NULL) return SP_PPROF_MALFORMED;
    status = build(message, profile);
    spanprof__pprof__profile__free_unpacked(message, NULL);
    return status;
}
