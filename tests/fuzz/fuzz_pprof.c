/* Profiles of any shape, with any names, labels and values: what the encoder writes is
 * what protobuf-c's own decoder reads, string for string; sp_pprof_decode agrees, and
 * stands whatever is read in its place. */
#include "input.h"

#include "../../csrc/core/callsite.h"
#include "../../csrc/core/pprof.h"
#include "profile.pb-c.h"

#include <string.h>
#include <zlib.h>

#define NODES 40u
#define TEXT 64u       /* most bytes of a name */
#define POOL 24u       /* callsites and label sets that are there anyway */
#define OWN 3u         /* of the input's own: what is interned stays for good */
#define MOST_LABELS 3u /* of a node */

typedef Spanprof__Pprof__Profile Message;

static uint32_t pool_callsites[POOL], pool_labels[POOL];

/* --- what is expected ---------------------------------------------------------------
 */

/* How many bytes of a well-formed character are there; 0: it is none. (Unicode, table
 * 3-7; surrogates are told apart by the caller.) */
static size_t character(const unsigned char *text, size_t length) {
    static const struct {
        unsigned char first, last, low, high, more;
    } rows[] = {{0x00, 0x7f, 0, 0, 0},       {0xc2, 0xdf, 0x80, 0xbf, 1},
                {0xe0, 0xe0, 0xa0, 0xbf, 2}, {0xe1, 0xef, 0x80, 0xbf, 2},
                {0xf0, 0xf0, 0x90, 0xbf, 3}, {0xf1, 0xf3, 0x80, 0xbf, 3},
                {0xf4, 0xf4, 0x80, 0x8f, 3}};
    for (size_t n = 0; n < sizeof rows / sizeof rows[0]; n++) {
        if (text[0] < rows[n].first || text[0] > rows[n].last) continue;
        if (length < rows[n].more + 1u) return 0;
        if (rows[n].more > 0 && (text[1] < rows[n].low || text[1] > rows[n].high))
            return 0;
        for (size_t i = 2; i <= rows[n].more; i++)
            if (text[i] < 0x80 || text[i] > 0xbf) return 0;
        return rows[n].more + 1u;
    }
    return 0;
}

/* As a file may have it: bytes that are no text as \xNN, lone surrogates as \udNNN. */
static char *clean(char *out, const struct sp_string *string) {
    const unsigned char *text = (const unsigned char *)string->bytes;
    for (size_t at = 0; at < string->length;) {
        size_t size = character(text + at, string->length - at);
        if (size == 3 && text[at] == 0xed && text[at + 1] >= 0xa0) {
            unsigned code = (text[at + 1] & 0x3fu) << 6 | (text[at + 2] & 0x3fu);
            out += sprintf(out, "\\ud%03x", code);
            at += 3;
        } else if (size == 0 || text[at] == 0) {
            out += sprintf(out, "\\x%02x", text[at]);
            at++;
        } else {
            memcpy(out, text + at, size);
            out += size;
            at += size;
        }
    }
    *out = '\0';
    return out;
}

/* --- the profile ---------------------------------------------------------------------
 */

/* Text of all kinds, from few bytes of input. */
static size_t take_text(struct input *input, char *text) {
    static const char *const parts[] = {"a",
                                        "::",
                                        "\xc3\xa9",
                                        "\xed\xa0\x80",
                                        "\xed\xbf\xbf",
                                        "\xf0\x9f\x90\x8d",
                                        "\xff",
                                        "\xe2\x82",
                                        "\\x00",
                                        " ",
                                        "\"",
                                        "\n",
                                        "span_id",
                                        "\xef\xbf\xbd"};
    const unsigned count = sizeof parts / sizeof parts[0];
    size_t length = 0;
    for (unsigned pieces = input_below(input, 6); pieces > 0; pieces--) {
        unsigned choice = input_byte(input);
        if (choice < count) {
            memcpy(text + length, parts[choice], strlen(parts[choice]));
            length += strlen(parts[choice]);
        } else {
            text[length++] = (char)choice;
        }
    }
    return length;
}

static uint32_t make_callsite(struct input *input) {
    char text[3][TEXT];
    struct sp_text part[3];
    for (int n = 0; n < 3; n++)
        part[n] = (struct sp_text){text[n], take_text(input, text[n])};
    uint32_t line = (uint32_t)input_number(input, input_below(input, 5));
    return sp_callsite_intern(part[0], part[1], part[2], line, 0);
}

static uint32_t make_labels(struct input *input) {
    char key[MOST_LABELS][TEXT], value[MOST_LABELS][TEXT];
    struct sp_text keys[MOST_LABELS], values[MOST_LABELS];
    uint32_t count = 0;
    for (unsigned n = input_below(input, MOST_LABELS + 1); n > 0; n--) {
        keys[count] = (struct sp_text){key[count], take_text(input, key[count])};
        values[count] = (struct sp_text){value[count], take_text(input, value[count])};
        bool is_new = true; /* they must be */
        for (uint32_t k = 0; k < count; k++)
            is_new = is_new && (keys[k].length != keys[count].length ||
                                memcmp(key[k], key[count], keys[k].length) != 0);
        count += is_new;
    }
    return sp_labels_intern(keys, values, count, UINT32_MAX);
}

/* Most are small, some as large as they come. */
static int64_t take_value(struct input *input) {
    static const int64_t rare[] = {INT64_MAX,        INT64_MIN, -1,
                                   (int64_t)1 << 53, 127,       128};
    uint8_t choice = input_byte(input);
    if (choice < 128) return choice % 4;
    if (choice < 128 + sizeof rare / sizeof rare[0]) return rare[choice - 128];
    return (int64_t)input_number(input, choice % 9);
}

static struct sp_profile *make_profile(struct input *input) {
    uint32_t callsites[POOL + OWN], labels[POOL + OWN];
    memcpy(callsites, pool_callsites, sizeof pool_callsites);
    memcpy(labels, pool_labels, sizeof pool_labels);
    unsigned own = input_below(input, OWN + 1);
    for (unsigned n = 0; n < own; n++) {
        callsites[POOL + n] = make_callsite(input);
        labels[POOL + n] = make_labels(input);
    }
    uint32_t count = input_below(input, NODES);
    struct sp_profile *profile = sp_profile_new(count);
    CHECK(profile != NULL);
    profile->start_unix = input_number(input, 8);
    profile->duration = input_number(input, 4);
    profile->kinds = SP_BIT(SP_KIND_COUNT) - 1;
    if (input_byte(input) % 8 == 0) CHECK(sp_profile_add_span_ids(profile));
    for (uint32_t n = 0; n < count; n++) {
        struct sp_node *node = &profile->nodes[n];
        node->parent = (int32_t)input_below(input, n + 1) - 1;
        node->callsite = callsites[input_below(input, POOL + own)];
        uint8_t choice = input_byte(input);
        node->labels = choice < 128 ? SP_LABELS_NONE : labels[choice % (POOL + own)];
        uint64_t which = input_number(input, 2);
        for (int m = 0; m < SP_METRIC_COUNT; m++)
            node->value[m] = which >> m & 1 ? take_value(input) : 0;
        if (profile->span_ids != NULL) profile->span_ids[n] = n + 1;
    }
    return profile;
}

/* --- what was written --------------------------------------------------------------
 */

static unsigned char *decompress(const unsigned char *data, size_t length,
                                 size_t *plain_length) {
    size_t room = 1 << 20;
    unsigned char *plain = malloc(room);
    z_stream stream = {.next_in = (Bytef *)(uintptr_t)data,
                       .avail_in = (uInt)length,
                       .next_out = plain,
                       .avail_out = (uInt)room};
    CHECK_EQUAL(Z_OK, inflateInit2(&stream, 15 + 16));
    CHECK_EQUAL(Z_STREAM_END, inflate(&stream, Z_FINISH));
    CHECK_EQUAL(0, stream.avail_in);
    *plain_length = room - stream.avail_out;
    inflateEnd(&stream);
    return plain;
}

static const char *string_at(const Message *message, int64_t index) {
    CHECK(index >= 0 && (size_t)index < message->n_string_table);
    return message->string_table[index];
}

static void check_text(const Message *message, int64_t index,
                       const struct sp_string *expected) {
    static char text[4 * 4096];
    CHECK(expected->length < 4096);
    clean(text, expected);
    CHECK(strcmp(string_at(message, index), text) == 0);
}

static void check_strings(const Message *message) {
    CHECK(message->n_string_table > 0 && message->string_table[0][0] == '\0');
    for (size_t n = 0; n < message->n_string_table; n++) {
        const char *text = message->string_table[n];
        for (size_t at = 0, left = strlen(text); left > 0;) {
            size_t size = character((const unsigned char *)text + at, left);
            CHECK(size > 0);
            at += size;
            left -= size;
        }
        for (size_t other = 0; other < n; other++)
            CHECK(strcmp(text, message->string_table[other]) != 0);
    }
}

static void check_function_name(const char *name, const struct sp_callsite *site) {
    static char text[8 * 4096];
    char *end = text;
    if (site->target->length > 0) {
        end = clean(text, site->target);
        memcpy(end, "::", 2);
        end += 2;
    }
    clean(end, site->name);
    CHECK(strcmp(name, text) == 0);
}

static void check_location(const Message *message, uint64_t id, uint32_t callsite) {
    const struct sp_callsite *site = sp_callsite_get(callsite);
    CHECK(id > 0 && id <= message->n_location && id <= message->n_function);
    const Spanprof__Pprof__Location *location = message->location[id - 1];
    const Spanprof__Pprof__Function *function = message->function[id - 1];
    CHECK_EQUAL(id, location->id);
    CHECK_EQUAL(id, function->id);
    CHECK_EQUAL(1, location->mapping_id);
    CHECK_EQUAL(1, location->n_line);
    CHECK_EQUAL(id, location->line[0]->function_id);
    CHECK_EQUAL(site->line, location->line[0]->line);
    CHECK_EQUAL(site->line, function->start_line);
    check_function_name(string_at(message, function->name), site);
    check_text(message, function->filename, site->file);
}

/* Labels of the node and its ancestors; of one key, as it is written, the innermost. */
static void check_labels(const Message *message, const Spanprof__Pprof__Sample *sample,
                         const struct sp_profile *profile, int32_t node) {
    static char seen[NODES * MOST_LABELS][4 * TEXT + 1];
    size_t count = 0, label = 0;
    if (profile->span_ids != NULL) {
        CHECK(sample->n_label > 0);
        CHECK(strcmp(string_at(message, sample->label[0]->key), "span_id") == 0);
        CHECK_EQUAL(0, sample->label[0]->str);
        CHECK_EQUAL(profile->span_ids[node], sample->label[0]->num);
        strcpy(seen[count++], "span_id");
        label++;
    }
    for (int32_t n = node; n >= 0; n = profile->nodes[n].parent) {
        const struct sp_labels *labels = sp_labels_get(profile->nodes[n].labels);
        for (uint32_t i = 0; i < labels->count; i++) {
            clean(seen[count], labels->items[i].key);
            size_t k = 0;
            while (strcmp(seen[k], seen[count]) != 0) k++;
            if (k < count) continue;
            CHECK(label < sample->n_label);
            CHECK(strcmp(string_at(message, sample->label[label]->key), seen[count]) ==
                  0);
            check_text(message, sample->label[label]->str, labels->items[i].value);
            label++;
            count++;
        }
    }
    CHECK_EQUAL(label, sample->n_label);
}

static void check_sample(const Message *message, const Spanprof__Pprof__Sample *sample,
                         const struct sp_profile *profile, int32_t node) {
    size_t depth = 0;
    for (int32_t n = node; n >= 0; n = profile->nodes[n].parent, depth++) {
        CHECK(depth < sample->n_location_id);
        check_location(message, sample->location_id[depth], profile->nodes[n].callsite);
    }
    CHECK_EQUAL(depth, sample->n_location_id);
    check_labels(message, sample, profile, node);
}

/* The sum of the metrics that the series' row names. */
static int64_t value_of(const struct sp_node *node, const struct sp_series *series) {
    uint64_t sum = 0;
    for (int metric = 0; metric < SP_METRIC_COUNT; metric++)
        if (series->metrics >> metric & 1) sum += (uint64_t)node->value[metric];
    return (int64_t)sum;
}

static void check_samples(const Message *message, const struct sp_profile *profile,
                          enum sp_kind kind) {
    size_t next = 0;
    for (uint32_t n = 0; n < profile->count; n++) {
        int64_t values[8];
        size_t count = 0;
        bool any = false;
        for (size_t s = 0; s < sp_series_count; s++) {
            if (sp_series[s].kind != kind) continue;
            values[count] = value_of(&profile->nodes[n], &sp_series[s]);
            any = any || values[count] != 0;
            count++;
        }
        CHECK_EQUAL(count, message->n_sample_type);
        if (!any) continue;
        CHECK(next < message->n_sample);
        const Spanprof__Pprof__Sample *sample = message->sample[next++];
        CHECK_EQUAL(count, sample->n_value);
        for (size_t v = 0; v < count; v++) CHECK_EQUAL(values[v], sample->value[v]);
        check_sample(message, sample, profile, (int32_t)n);
    }
    CHECK_EQUAL(next, message->n_sample);
}

static void check_types(const Message *message, enum sp_kind kind) {
    size_t type = 0;
    bool has_default = false;
    for (size_t s = 0; s < sp_series_count; s++) {
        if (sp_series[s].kind != kind) continue;
        const Spanprof__Pprof__ValueType *found = message->sample_type[type++];
        CHECK(strcmp(string_at(message, found->type), sp_series[s].name) == 0);
        CHECK(strcmp(string_at(message, found->unit), sp_series[s].unit) == 0);
        has_default = has_default || found->type == message->default_sample_type;
    }
    CHECK_EQUAL(type, message->n_sample_type);
    CHECK(has_default);
    CHECK(message->period_type != NULL && message->period == 1);
}

/* --- our own reader ------------------------------------------------------------------
 */

static void check_decoded(const unsigned char *data, size_t length,
                          const struct sp_profile *profile, enum sp_kind kind) {
    struct sp_profile *decoded;
    CHECK_EQUAL(SP_PPROF_OK, sp_pprof_decode(data, length, &decoded));
    CHECK_EQUAL(profile->start_unix, decoded->start_unix);
    CHECK_EQUAL(profile->duration, decoded->duration);
    CHECK_EQUAL(SP_BIT(kind), decoded->kinds);
    for (size_t s = 0; s < sp_series_count; s++)
        if (sp_series[s].kind == kind && sp_series[s].kind != SP_KIND_HEAP)
            CHECK_EQUAL(sp_profile_total(profile, &sp_series[s]),
                        sp_profile_total(decoded, &sp_series[s]));
    sp_profile_free(decoded);
}

/* Whatever is in the file, there is an answer. */
static void read_damaged(struct input *input, unsigned char *plain, size_t length) {
    for (unsigned n = 1 + input_below(input, 8); n > 0 && length > 0; n--)
        plain[input_number(input, 2) % length] = input_byte(input);
    uLong room = compressBound(length) + 64;
    unsigned char *data = malloc(room);
    z_stream stream = {.next_in = plain,
                       .avail_in = (uInt)length,
                       .next_out = data,
                       .avail_out = (uInt)room};
    CHECK_EQUAL(Z_OK, deflateInit2(&stream, Z_BEST_SPEED, Z_DEFLATED, 15 + 16, 8,
                                   Z_DEFAULT_STRATEGY));
    CHECK_EQUAL(Z_STREAM_END, deflate(&stream, Z_FINISH));
    length = room - stream.avail_out;
    deflateEnd(&stream);
    if (input_byte(input) % 2)
        data[input_number(input, 2) % length] = input_byte(input);
    struct sp_profile *profile = NULL;
    enum sp_pprof_status status = sp_pprof_decode(data, length, &profile);
    CHECK_EQUAL(status == SP_PPROF_OK, profile != NULL);
    sp_profile_free(profile);
    free(data);
}

static void check_file(struct input *input, const struct sp_profile *profile,
                       enum sp_kind kind, const char *program, bool damage) {
    unsigned char *data;
    size_t length, plain_length;
    CHECK_EQUAL(SP_PPROF_OK, sp_pprof_encode(profile, kind, program, &data, &length));
    unsigned char *plain = decompress(data, length, &plain_length);
    Message *message = spanprof__pprof__profile__unpack(NULL, plain_length, plain);
    CHECK(message != NULL);
    CHECK_EQUAL(profile->start_unix, message->time_nanos);
    CHECK_EQUAL(profile->duration, message->duration_nanos);
    check_strings(message);
    check_types(message, kind);
    check_samples(message, profile, kind);
    spanprof__pprof__profile__free_unpacked(message, NULL);
    check_decoded(data, length, profile, kind);
    if (damage) read_damaged(input, plain, plain_length);
    free(plain);
    free(data);
}

/* --- the limit of samples
 * --------------------------------------------------------------- */

static uint32_t samples_of(const struct sp_profile *profile) {
    uint32_t count = 0;
    for (uint32_t n = 0; n < profile->count; n++)
        count += !sp_node_empty(&profile->nodes[n]);
    return count;
}

static void check_split(const struct sp_profile *profile, uint32_t most) {
    struct sp_profile *first, *rest;
    CHECK_EQUAL(0, sp_profile_split(profile, most, &first, &rest));
    CHECK(samples_of(first) <= most);
    CHECK_EQUAL(samples_of(profile),
                samples_of(first) + (rest != NULL ? samples_of(rest) : 0));
    for (size_t s = 0; s < sp_series_count; s++)
        CHECK_EQUAL(sp_profile_total(profile, &sp_series[s]),
                    sp_sum(sp_profile_total(first, &sp_series[s]),
                           rest != NULL ? sp_profile_total(rest, &sp_series[s]) : 0));
    sp_profile_free(first);
    sp_profile_free(rest);
}

/* --- the program
 * ---------------------------------------------------------------------- */

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    for (unsigned n = 0; n < POOL; n++) {
        uint8_t bytes[64];
        for (unsigned i = 0; i < sizeof bytes; i++)
            bytes[i] = (uint8_t)((n * 31 + i * 7) ^ (n * i));
        struct input input = {bytes, bytes + sizeof bytes};
        pool_callsites[n] = make_callsite(&input);
        pool_labels[n] = make_labels(&input);
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, data + size};
    char program[TEXT];
    program[take_text(&input, program)] = '\0';
    uint8_t how = input_byte(&input);
    struct sp_profile *profile = make_profile(&input);
    check_file(&input, profile, how % SP_KIND_COUNT, program, how >= 192);
    check_split(profile, 1 + how % 7u);
    sp_profile_free(profile);
    return 0;
}
