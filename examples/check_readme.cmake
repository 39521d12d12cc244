# SPDX-License-Identifier: Apache-2.0
# cmake -DREADME=... -DSOURCE=... -P check_readme.cmake: the README's first C++ block must be
# what stands between the marks of the example, indentation aside.
file(READ "${README}" readme)
file(READ "${SOURCE}" source)
if(NOT readme MATCHES "```cpp\n([^`]*)```")
  message(FATAL_ERROR "${README} has no block of C++")
endif()
set(shown "${CMAKE_MATCH_1}")
if(NOT source MATCHES "  // README begin\n(.*)\n  // README end")
  message(FATAL_ERROR "${SOURCE} has no marks")
endif()
string(REPLACE "\n  " "\n" compiled "\n${CMAKE_MATCH_1}\n")
string(SUBSTRING "${compiled}" 1 -1 compiled)
if(NOT shown STREQUAL compiled)
  message(FATAL_ERROR "README.md shows\n${shown}\nbut the example compiled is\n${compiled}")
endif()
