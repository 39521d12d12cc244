# SPDX-License-Identifier: Apache-2.0
# Flags of every target of this project. They are private: nothing here reaches a consumer.

set(quarry_warnings -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Wold-style-cast
                    -Woverloaded-virtual -Wcast-align -Wundef)
# nvcc's generated host code is not pedantic, has C casts and shadows.
set(quarry_cuda_host_warnings -Wall,-Wextra)

function(quarry_target_defaults target)
  set_target_properties(${target} PROPERTIES
    CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS OFF
    CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
    CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
    CUDA_VISIBILITY_PRESET hidden CUDA_SEPARABLE_COMPILATION OFF)
  # Contraction off: a result must not depend on what the compiler fuses. Explicit fma stays.
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CXX>:${quarry_warnings};-ffp-contract=off>"
    "$<$<COMPILE_LANGUAGE:CUDA>:--fmad=false;--extended-lambda;-Xcompiler=${quarry_cuda_host_warnings},-ffp-contract=off>")
  if(QUARRY_CUDA_EMULATED)
    # The emulated runtime finds the PTX in what nvcc embeds, uncompressed.
    target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:--compress-mode=none>")
  endif()
  if(QUARRY_WERROR)
    target_compile_options(${target} PRIVATE
      "$<$<COMPILE_LANGUAGE:CXX>:-Werror>"
      "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Werror>")
  endif()
  if(QUARRY_SANITIZE)
    target_compile_options(${target} PRIVATE
      "$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${QUARRY_SANITIZE};-fno-omit-frame-pointer;-fno-sanitize-recover=all>")
    target_link_options(${target} PUBLIC "-fsanitize=${QUARRY_SANITIZE}")
  endif()
  if(QUARRY_BUILD_FUZZERS)
    target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link>")
  endif()
  if(QUARRY_COVERAGE)
    target_compile_options(${target} PRIVATE
      "$<$<COMPILE_LANGUAGE:CXX>:--coverage;-fprofile-abs-path>")
    target_link_options(${target} PUBLIC --coverage)
  endif()
endfunction()
