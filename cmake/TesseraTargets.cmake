# Flags of Tessera's own targets, and the three ways to add one.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

find_program(TESSERA_CCACHE ccache)
if(TESSERA_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Without this it caches nothing that uses a precompiled header.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros ${TESSERA_CCACHE})
endif()

add_library(tessera_flags INTERFACE)
target_compile_options(tessera_flags INTERFACE -Wall -Wextra -Wpedantic -Wno-unknown-pragmas -fno-math-errno)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(tessera_flags INTERFACE -Wno-restrict)  # false alarms on "a" + std::string: GCC bug 105651
endif()
if(TESSERA_WARNINGS_AS_ERRORS)
  target_compile_options(tessera_flags INTERFACE -Werror)
endif()
if(TESSERA_SANITIZE)
  target_compile_options(tessera_flags INTERFACE -fsanitize=${TESSERA_SANITIZE} -fno-omit-frame-pointer -g -O1)
  target_link_options(tessera_flags INTERFACE -fsanitize=${TESSERA_SANITIZE})
  if(TESSERA_SANITIZE MATCHES "undefined")
    target_compile_options(tessera_flags INTERFACE -fno-sanitize-recover=undefined)
  endif()
endif()

# Release and debug builds of the CPU kernels: every instruction set is compiled in, the machine's best is chosen at run
# time. Unoptimised builds emit inline functions out of line, which the linker could then take from the wrong
# instruction set; they get the baseline only.
if(CMAKE_BUILD_TYPE STREQUAL "Debug")
  set(TESSERA_INSTRUCTION_SETS baseline)
else()
  set(TESSERA_INSTRUCTION_SETS baseline avx2 avx512)
endif()

# Where time is spent on parsing templates of other libraries (JSON, command lines, tests) and next to none in the code,
# optimised builds compile at -O1: a third of a full build's time less. Comes after -O3, hence wins.
set(TESSERA_LIGHT_OPTIMISATION $<$<CONFIG:Release>:-O1>)

# tessera_add_library(tensor DEPENDS kernels): target tessera_tensor (tessera::tensor) from the sources of the current
# folder and its subfolders.
function(tessera_add_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPENDS;PRIVATE" ${ARGN})
  set(sources ${arg_SOURCES})
  if(NOT sources)
    file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cpp)
  endif()
  if(NOT sources)  # a folder that is still to come
    set(sources ${PROJECT_BINARY_DIR}/empty.cpp)
    file(WRITE ${sources} "")
  endif()
  add_library(tessera_${name} STATIC ${sources})
  add_library(tessera::${name} ALIAS tessera_${name})
  set_target_properties(tessera_${name} PROPERTIES EXPORT_NAME ${name})
  target_compile_features(tessera_${name} PUBLIC cxx_std_20)
  target_include_directories(tessera_${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
                                                    $<INSTALL_INTERFACE:include/tessera>)
  foreach(dependency ${arg_DEPENDS})
    target_link_libraries(tessera_${name} PUBLIC tessera::${dependency})
  endforeach()
  target_link_libraries(tessera_${name} PRIVATE $<BUILD_INTERFACE:tessera_flags> ${arg_PRIVATE})
  set_property(GLOBAL APPEND PROPERTY TESSERA_LIBRARIES tessera_${name})
endfunction()

# tessera_add_program(gpt2_train SOURCES train.cpp DEPENDS dist nn): an executable in bin/.
function(tessera_add_program name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPENDS;PRIVATE" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  foreach(dependency ${arg_DEPENDS})
    target_link_libraries(${name} PRIVATE tessera::${dependency})
  endforeach()
  target_link_libraries(${name} PRIVATE tessera_flags ${arg_PRIVATE})
endfunction()

# tessera_precompile_gtest(kernels_tests): parses GoogleTest once for the whole program, two thirds of a second less for
# each of its files. Clang's precompiled headers do not go with ccache; there every file parses for itself.
function(tessera_precompile_gtest name)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_precompile_headers(${name} PRIVATE <gtest/gtest.h>)
    target_compile_options(${name} PRIVATE -fpch-preprocess)
  endif()
endfunction()
