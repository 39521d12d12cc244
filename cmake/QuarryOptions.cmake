# SPDX-License-Identifier: Apache-2.0
# What a user of the build can choose.

# PROJECT_IS_TOP_LEVEL would be false under add_subdirectory: an engine that brings quarry
# in as a subdirectory gets the library alone.
option(QUARRY_BUILD_TESTS "Build the tests" ${PROJECT_IS_TOP_LEVEL})
option(QUARRY_BUILD_BENCH "Build the benchmarks" ${PROJECT_IS_TOP_LEVEL})
option(QUARRY_BUILD_TOOLS "Build quarry-replay" ${PROJECT_IS_TOP_LEVEL})
option(QUARRY_BUILD_EXAMPLES "Build the examples" ${PROJECT_IS_TOP_LEVEL})
option(QUARRY_BUILD_FUZZERS "Build the libFuzzer targets of tests/fuzz, with clang" OFF)
option(QUARRY_BUILD_MODEL_EXAMPLE "Build examples/smollm2: a real model on quarry" OFF)
option(QUARRY_MODEL_NATIVE "Compile examples/smollm2 for this machine's instruction set" ON)
option(QUARRY_INSTALL "Generate install rules" ${PROJECT_IS_TOP_LEVEL})
option(QUARRY_SHARED "Build and install libquarry_c.so, the C API as a shared library" OFF)
option(QUARRY_WERROR "Treat warnings as errors" OFF)
option(QUARRY_COVERAGE "Instrument for gcov" OFF)
set(QUARRY_SANITIZE "" CACHE STRING "Sanitizers: address,undefined or thread")
set(QUARRY_CUDA AUTO CACHE STRING "CUDA backend: ON, OFF or AUTO (where nvcc 12.8 or later is found)")
set_property(CACHE QUARRY_CUDA PROPERTY STRINGS AUTO ON OFF)
set(QUARRY_NVTX AUTO CACHE STRING
    "NVTX ranges around the calls, with the CUDA backend alone: ON, OFF or AUTO (where the header is)")
set_property(CACHE QUARRY_NVTX PROPERTY STRINGS AUTO ON OFF)
set(QUARRY_CUDA_ARCHITECTURES "80;86;89;90;100;120"
    CACHE STRING "Compute capabilities to build; the last one also as PTX for newer devices")

option(QUARRY_CUDA_EMULATED
       "For tests alone: link the CUDA backend with an interpreter of its kernels, not with CUDA" OFF)

if(PROJECT_IS_TOP_LEVEL)
  if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
  endif()
  set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
  set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
endif()
