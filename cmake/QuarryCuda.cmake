# SPDX-License-Identifier: Apache-2.0
# Decides QUARRY_HAS_CUDA and, where true, enables the CUDA language.

# 12.8 is the first nvcc that knows every architecture of the default list.
set(QUARRY_CUDA_MINIMUM 12.8)
set(QUARRY_HAS_CUDA OFF)
set(QUARRY_CUDA_REASON "QUARRY_CUDA is OFF")

if(QUARRY_CUDA STREQUAL "AUTO")
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(QUARRY_CUDA_REASON "no nvcc found")
  else()
    execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --version
                    OUTPUT_VARIABLE nvcc_output ERROR_QUIET)
    string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" _ "${nvcc_output}")
    if("${CMAKE_MATCH_1}" VERSION_LESS QUARRY_CUDA_MINIMUM)
      set(QUARRY_CUDA_REASON
          "${CMAKE_CUDA_COMPILER} is release '${CMAKE_MATCH_1}', older than ${QUARRY_CUDA_MINIMUM}")
    else()
      set(QUARRY_HAS_CUDA ON)
    endif()
  endif()
elseif(QUARRY_CUDA)
  set(QUARRY_HAS_CUDA ON)
endif()

# The kernels are interpreted (tests/emulator): nothing that is built so may be installed.
if(QUARRY_CUDA_EMULATED)
  if(NOT QUARRY_HAS_CUDA)
    message(FATAL_ERROR "quarry: QUARRY_CUDA_EMULATED needs nvcc: ${QUARRY_CUDA_REASON}")
  endif()
  if(QUARRY_INSTALL OR QUARRY_SHARED)
    message(FATAL_ERROR "quarry: QUARRY_CUDA_EMULATED is for tests alone; set QUARRY_INSTALL and "
                        "QUARRY_SHARED to OFF")
  endif()
  if(NOT QUARRY_BUILD_TESTS)
    message(FATAL_ERROR "quarry: QUARRY_CUDA_EMULATED needs QUARRY_BUILD_TESTS")
  endif()
endif()

if(QUARRY_HAS_CUDA)
  set(architectures ${QUARRY_CUDA_ARCHITECTURES})
  if(QUARRY_CUDA_EMULATED)
    list(TRANSFORM architectures APPEND "-virtual")
    set(CMAKE_CUDA_ARCHITECTURES ${architectures})
    set(QUARRY_CUDART quarry_emulated_runtime)
  else()
    # Real code for each architecture, and PTX of the last for devices newer than all.
    list(POP_BACK architectures newest)
    list(TRANSFORM architectures APPEND "-real")
    set(CMAKE_CUDA_ARCHITECTURES ${architectures} ${newest})
    set(QUARRY_CUDART CUDA::cudart_static)
  endif()
  # The library names ${QUARRY_CUDART} itself, so that consumers without the CUDA language
  # link it too.
  set(CMAKE_CUDA_RUNTIME_LIBRARY None)
  enable_language(CUDA)
  # CMake before 3.26 does not know that nvcc has C++20.
  if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  endif()
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS QUARRY_CUDA_MINIMUM)
    message(FATAL_ERROR "quarry: CUDA needs nvcc ${QUARRY_CUDA_MINIMUM} or later, "
                        "${CMAKE_CUDA_COMPILER} is ${CMAKE_CUDA_COMPILER_VERSION}")
  endif()
  find_package(CUDAToolkit REQUIRED)
  message(STATUS "quarry: CUDA backend ON (nvcc ${CMAKE_CUDA_COMPILER_VERSION}, "
                 "architectures ${QUARRY_CUDA_ARCHITECTURES})")
  if(QUARRY_CUDA_EMULATED)
    message(STATUS "quarry: *** the CUDA device is EMULATED: for tests of results alone ***")
  endif()
else()
  message(STATUS "quarry: CUDA backend OFF (${QUARRY_CUDA_REASON})")
endif()

# NVTX 3 is headers alone and comes with the toolkit; some packages of it leave them out.
set(QUARRY_HAS_NVTX OFF)
if(QUARRY_HAS_CUDA AND QUARRY_NVTX)
  find_path(QUARRY_NVTX_INCLUDE_DIR nvtx3/nvToolsExt.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
  mark_as_advanced(QUARRY_NVTX_INCLUDE_DIR)
  if(QUARRY_NVTX_INCLUDE_DIR)
    set(QUARRY_HAS_NVTX ON)
  elseif(NOT QUARRY_NVTX STREQUAL "AUTO")
    message(FATAL_ERROR "quarry: QUARRY_NVTX is ON, but nvtx3/nvToolsExt.h was not found")
  endif()
  message(STATUS "quarry: NVTX ranges ${QUARRY_HAS_NVTX}")
elseif(QUARRY_NVTX AND NOT QUARRY_NVTX STREQUAL "AUTO")
  message(FATAL_ERROR "quarry: QUARRY_NVTX is ON, but the CUDA backend is OFF")
endif()
