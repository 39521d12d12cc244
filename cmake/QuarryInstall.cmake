# SPDX-License-Identifier: Apache-2.0
# install(): the library, the headers, the tools and find_package(quarry).

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(quarry_cmake_dir "${CMAKE_INSTALL_LIBDIR}/cmake/quarry")

install(TARGETS quarry EXPORT quarryTargets ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
if(QUARRY_SHARED)
  install(TARGETS quarry_c EXPORT quarryTargets LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
endif()
install(DIRECTORY include/quarry DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING
        PATTERN "*.h")
install(EXPORT quarryTargets NAMESPACE quarry:: DESTINATION "${quarry_cmake_dir}")

configure_package_config_file(cmake/quarryConfig.cmake.in quarryConfig.cmake
                              INSTALL_DESTINATION "${quarry_cmake_dir}"
                              NO_CHECK_REQUIRED_COMPONENTS_MACRO NO_SET_AND_CHECK_MACRO)
# Before 1.0 a minor version may change the API.
write_basic_package_version_file(quarryConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/quarryConfig.cmake"
              "${PROJECT_BINARY_DIR}/quarryConfigVersion.cmake" cmake/Findhwy.cmake
        DESTINATION "${quarry_cmake_dir}")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DOCDIR}")
if(QUARRY_BUILD_TOOLS)
  install(TARGETS quarry-calibrate quarry-replay RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endif()
