/* Profiles as pprof files: gzip-compressed protobuf, one kind a file. */
#ifndef SPANPROF_CORE_PPROF_H
#define SPANPROF_CORE_PPROF_H

#include "profile.h"

enum sp_pprof_status {
    SP_PPROF_OK,
    SP_PPROF_NO_MEMORY,
    SP_PPROF_MALFORMED, /* not gzip, not a profile, or one that contradicts itself */
    SP_PPROF_FOREIGN,   /* a profile without any series of ours */
};

/* `program` names the mapping (usually the interpreter's path). On success the
 * caller frees *data with free(). Any thread, no lock. */
enum sp_pprof_status sp_pprof_encode(const struct sp_profile *profile,
                                     enum sp_kind kind, const char *program,
                                     unsigned char **data, size_t *length);

/* Read a file that sp_pprof_encode wrote. Labels come back on the stack's own
 * node. On success the caller frees *profile with sp_profile_free. */
enum sp_pprof_status sp_pprof_decode(const unsigned char *data, size_t length,
                                     struct sp_profile **profile);

#endif
