/* SPDX-License-Identifier: Apache-2.0
 *
 * Only has to compile, as C and as C++, with -Wpadded: a hole in a struct would take a later
 * member that an older caller never wrote. */
#include <quarry/c_api.h>

size_t quarry_header_alone(void);
size_t quarry_header_alone(void) { return sizeof(quarry_config) + sizeof(quarry_next_args); }
