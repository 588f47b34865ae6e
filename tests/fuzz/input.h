/* What a fuzzer makes of its input, and how it says that something is wrong. */
#ifndef SPANPROF_TESTS_FUZZ_INPUT_H
#define SPANPROF_TESTS_FUZZ_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Bytes, taken from the front; behind the last one there are zeroes. */
struct input {
    const uint8_t *next, *end;
};

static inline bool input_is_over(const struct input *input) {
    return input->next == input->end;
}

static inline uint8_t input_byte(struct input *input) {
    return input_is_over(input) ? 0 : *input->next++;
}

/* Below `limit`, which is at most 256. */
static inline unsigned input_below(struct input *input, unsigned limit) {
    return input_byte(input) % limit;
}

static inline uint64_t input_number(struct input *input, unsigned bytes) {
    uint64_t number = 0;
    while (bytes-- > 0) number = number << 8 | input_byte(input);
    return number;
}

/* What a fuzzer consists of, for libFuzzer. */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Both are what was expected and what was found, as numbers. */
#define CHECK_EQUAL(expected, found)                                           \
    do {                                                                       \
        uint64_t expected_ = (uint64_t)(expected), found_ = (uint64_t)(found); \
        if (expected_ == found_) break;                                        \
        fprintf(stderr, "%s:%d: %s is %llu (%lld), and not %s, %llu (%lld)\n", \
                __FILE__, __LINE__, #found, (unsigned long long)found_,        \
                (long long)found_, #expected, (unsigned long long)expected_,   \
                (long long)expected_);                                         \
        abort();                                                               \
    } while (0)

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (condition) break;                                                    \
        fprintf(stderr, "%s:%d: it does not hold that %s\n", __FILE__, __LINE__, \
                #condition);                                                     \
        abort();                                                                 \
    } while (0)

#endif
