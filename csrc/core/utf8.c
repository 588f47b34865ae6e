#include "utf8.h"

#include <stdio.h>
#include <string.h>

/* Bytes of the well-formed UTF-8 character at `text`, 0 if there is none.
 * Encoded surrogates are not well-formed. */
static unsigned utf8_length(const unsigned char *text, size_t left) {
    unsigned char c = text[0];
    unsigned length = c < 0x80   ? 1
                      : c < 0xc2 ? 0
                      : c < 0xe0 ? 2
                      : c < 0xf0 ? 3
                      : c < 0xf5 ? 4
                                 : 0;
    if (length == 0 || length > left) return 0;
    for (unsigned i = 1; i < length; i++)
        if ((text[i] & 0xc0) != 0x80) return 0;
    if (c == 0xe0 && text[1] < 0xa0) return 0;
    if (c == 0xed && text[1] > 0x9f) return 0;
    if (c == 0xf0 && text[1] < 0x90) return 0;
    if (c == 0xf4 && text[1] > 0x8f) return 0;
    return length;
}

bool sp_utf8_is_clean(const char *text, size_t length) {
    const unsigned char *in = (const unsigned char *)text;
    while (length > 0) {
        unsigned step = utf8_length(in, length);
        if (step == 0) return false;
        in += step;
        length -= step;
    }
    return true;
}

char *sp_utf8_clean(char *out, const char *text, size_t length, bool keep_nul) {
    const unsigned char *in = (const unsigned char *)text;
    while (length > 0) {
        unsigned step = in[0] == 0 && !keep_nul ? 0 : utf8_length(in, length);
        if (step > 0) {
            memcpy(out, in, step);
            out += step;
        } else if (in[0] == 0xed && length >= 3 && (in[1] & 0xe0) == 0xa0 &&
                   (in[2] & 0xc0) == 0x80) {
            unsigned code = 0xd000u | (in[1] & 0x3fu) << 6 | (in[2] & 0x3fu);
            out += sprintf(out, "\\u%04x", code);
            step = 3;
        } else {
            out += sprintf(out, "\\x%02x", in[0]);
            step = 1;
        }
        in += step;
        length -= step;
    }
    *out = '\0';
    return out;
}
