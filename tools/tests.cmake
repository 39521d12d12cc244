# SPDX-License-Identifier: Apache-2.0
# Tests of the tools; included by tests/CMakeLists.txt after quarry_add_test() is defined.

if(QUARRY_BUILD_TOOLS)
  quarry_add_test(test_safetensors SOURCES unit/test_safetensors.cpp
    LIBRARIES quarry_tools_core)
  quarry_add_test(test_calibrate SOURCES unit/test_calibrate.cpp)
  quarry_add_test(test_calibration_file SOURCES unit/test_calibration_file.cpp
    LIBRARIES quarry_tools_core)
  quarry_add_test(test_exact SOURCES unit/test_exact.cpp
    LIBRARIES quarry_tools_core)
  # Of the benchmarks, whether or not they are built.
  quarry_add_test(test_plot_grid SOURCES unit/test_plot_grid.cpp
    "${PROJECT_SOURCE_DIR}/bench/support/grid_figure.cpp"
    LIBRARIES quarry_tools_core)
  target_include_directories(test_plot_grid PRIVATE "${PROJECT_SOURCE_DIR}/bench")
  # gcc 12 sees overlapping copies where there are none (gcc bug 105651).
  target_compile_options(test_plot_grid PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>)
  quarry_add_test(test_goldens SOURCES indexer/test_goldens.cpp
    LIBRARIES quarry_tools_core)
  foreach(test IN ITEMS replay_cli calibrate_cli calibrate_memory)
    quarry_add_test(test_${test} SOURCES indexer/test_${test}.cpp
      LIBRARIES quarry_tools_core)
    add_dependencies(test_${test} quarry-calibrate quarry-replay)
    target_compile_definitions(test_${test} PRIVATE
      QUARRY_CALIBRATE="$<TARGET_FILE:quarry-calibrate>"
      QUARRY_REPLAY="$<TARGET_FILE:quarry-replay>")
  endforeach()
endif()
