#include "stats.h"

struct sp_stats sp_stats;
