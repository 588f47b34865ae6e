/* Text for formats that take UTF-8 alone. Interned strings may hold encoded surrogates,
 * and bytes that are no text. */
#ifndef SPANPROF_CORE_UTF8_H
#define SPANPROF_CORE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes that `length` bytes of text may come to, cleaned, with the NUL behind them. */
#define SP_UTF8_ROOM(length) (4 * (size_t)(length) + 1)

/* Whether it is well-formed UTF-8, which may hold NUL. */
bool sp_utf8_is_clean(const char *text, size_t length);

/* Append it to `out` as it is, but what is no UTF-8 as \xNN, and a lone surrogate as
 * \udNNN; NUL as \x00 if it is not to be kept. Returns the end, where a NUL is. */
char *sp_utf8_clean(char *out, const char *text, size_t length, bool keep_nul);

#endif
