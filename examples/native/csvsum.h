/* The sum of a column of a CSV file, by several threads. */
#ifndef CSVSUM_H
#define CSVSUM_H

#include <stddef.h>

struct csv_sum {
    double sum;
    size_t rows;
    size_t skipped; /* rows without a number there */
};

/* `text` is the file's, without quotes that span lines. `column` counts from 0. Returns
 * 0, or an errno. Needs no Python. */
int csv_sum(const char *text, size_t length, unsigned column, unsigned threads,
            struct csv_sum *result);

#endif
