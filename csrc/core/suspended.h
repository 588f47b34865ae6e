/* The spans that are suspended, by what will resume them: an open-addressed table of
 * groups, a group under each key. Keys are the host's (the address of a frame), and are
 * never followed. Any thread; each part of the table has a short lock. Linear probing
 * with the rest moved back on removal (Knuth, The Art of Computer Programming 3, 6.4,
 * algorithm R), so that it never fills up with what was removed. */
#ifndef SPANPROF_CORE_SUSPENDED_H
#define SPANPROF_CORE_SUSPENDED_H

#include "span.h"

/* Keep the group whose innermost span is given under the key. Returns the group that
 * was there, which is kept no longer, or NULL; for `retain` see below. False in *kept
 * out of memory. */
struct sp_span *sp_suspended_put(const void *key, struct sp_span *top,
                                 bool (*retain)(struct sp_span *), bool *kept);

/* The innermost span of the key's group, which is kept no longer; or NULL. With
 * `retain` not NULL, spans for which it says false are left out: they are about to be
 * removed. */
struct sp_span *sp_suspended_take(const void *key, bool (*retain)(struct sp_span *));

bool sp_suspended_has(const void *key);

/* Take one span out of its group. False if it is in none. */
bool sp_suspended_remove(const void *key, struct sp_span *span);

/* Visits every span, under a lock: `visit` must be brief and call nothing here. */
void sp_suspended_each(void (*visit)(void *context, struct sp_span *span),
                       void *context);

/* For tests: the table gets no more memory. */
void sp_suspended_refuse(bool refuse);

/* How many groups there are. A hint: other threads change it. */
uint64_t sp_suspended_count(void);

/* Fork: taken before, released after in the parent, made anew in the child. */
void sp_suspended_lock(void);
void sp_suspended_unlock(void);
void sp_suspended_relock_in_child(void);

#endif
