# SPDX-License-Identifier: Apache-2.0
# Google Highway as hwy::hwy: its own CMake package where there is one, else (Ubuntu 22.04's
# libhwy-dev has none) header and library. Installed beside quarry's package config.

find_package(hwy CONFIG QUIET)
if(NOT TARGET hwy::hwy)
  find_path(hwy_INCLUDE_DIR hwy/highway.h)
  find_library(hwy_LIBRARY hwy)
  mark_as_advanced(hwy_INCLUDE_DIR hwy_LIBRARY)
  if(hwy_INCLUDE_DIR AND hwy_LIBRARY)
    add_library(hwy::hwy UNKNOWN IMPORTED)
    set_target_properties(hwy::hwy PROPERTIES
      IMPORTED_LOCATION "${hwy_LIBRARY}"
      INTERFACE_INCLUDE_DIRECTORIES "${hwy_INCLUDE_DIR}")
    if(hwy_LIBRARY MATCHES "\\.so")
      set_property(TARGET hwy::hwy PROPERTY INTERFACE_COMPILE_DEFINITIONS HWY_SHARED_DEFINE)
    endif()
  endif()
endif()

set(hwy_TARGET_FOUND FALSE)
if(TARGET hwy::hwy)
  set(hwy_TARGET_FOUND TRUE)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(hwy REQUIRED_VARS hwy_TARGET_FOUND)
