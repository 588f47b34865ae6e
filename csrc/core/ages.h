/* How old live blocks are, and whether old ones become more: what tells a leak from a
 * cache. Found by walking the shadow map, which stops nobody. Under the collector's
 * lock, as every call here. */
#ifndef SPANPROF_CORE_AGES_H
#define SPANPROF_CORE_AGES_H

#include "profile.h"

/* Forget all: at session start, and in a child after fork. */
void sp_ages_reset(void);

/* Take the ages of all live blocks of paths below `count`, at wall time `wall`. Taken
 * again so soon that the walks would need more than one fiftieth of the time, the last
 * ones stay. With `is_report`, see which of them grew since the last report. False out
 * of memory. */
bool sp_ages_take(uint32_t count, uint64_t wall, bool is_report);

/* One in so many parts of the time may go into walks; 0: no limit, for tests. */
void sp_ages_limit(uint64_t parts);

/* Of a path below the last count. */
const struct sp_ages *sp_ages_of(uint32_t path);

#endif
