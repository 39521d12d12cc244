// SPDX-License-Identifier: Apache-2.0
//
// Which sanitizer this is compiled with: GCC says so by a macro, Clang by a feature.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define QUARRY_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define QUARRY_ADDRESS_SANITIZER 1
#endif
#endif
#ifndef QUARRY_ADDRESS_SANITIZER
#define QUARRY_ADDRESS_SANITIZER 0
#endif

#if defined(__SANITIZE_THREAD__)
#define QUARRY_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define QUARRY_THREAD_SANITIZER 1
#endif
#endif
#ifndef QUARRY_THREAD_SANITIZER
#define QUARRY_THREAD_SANITIZER 0
#endif
