/* The inline functions of spanprof.h once more, as symbols of the library: for those
 * who open it (cffi's ABI mode, ctypes). */
#define SPANPROF_INLINE __attribute__((visibility("default")))
#include "c_api.h"

#include "../include/spanprof.h"

SPANPROF_DEFINE;

void c_api_define_symbols(const spanprof_api *api) {
    spanprof_imported = api;
}
