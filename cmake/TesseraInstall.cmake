# cmake --install and find_package(Tessera): libraries, headers and programs, and a package file that finds what the
# libraries link to. Programs then say  target_link_libraries(mine PRIVATE tessera::tessera)  and
# #include <tessera/tessera.h>.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# One name for all of it. In the source tree <tessera/tessera.h> is a file of one line in the build folder.
add_library(tessera_all INTERFACE)
add_library(tessera::tessera ALIAS tessera_all)
set_target_properties(tessera_all PROPERTIES EXPORT_NAME tessera)
target_link_libraries(tessera_all INTERFACE tessera::dist)
file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/include/tessera/tessera.h CONTENT "#include <tessera.h>\n")
target_include_directories(tessera_all INTERFACE $<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/include>
                                                 $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)

get_property(libraries GLOBAL PROPERTY TESSERA_LIBRARIES)
install(TARGETS ${libraries} tessera_all EXPORT TesseraTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
foreach(folder kernels tensor autograd nn optim data dist)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/${folder} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/tessera
          FILES_MATCHING PATTERN "*.h"
          PATTERN "kernels/cpu" EXCLUDE PATTERN "kernels/meta" EXCLUDE          # what devices are made of
          PATTERN "mpi_*.h" EXCLUDE PATTERN "thread_board.h" EXCLUDE)           # what communicators are made of
endforeach()
install(FILES ${PROJECT_SOURCE_DIR}/tessera.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/tessera)
if(TESSERA_BUILD_EXAMPLES)
  install(TARGETS gpt2_prepare gpt2_train gpt2_generate gpt2_evaluate gpt2_export RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/Tessera)
install(EXPORT TesseraTargets NAMESPACE tessera:: DESTINATION ${package_folder})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/TesseraConfig.cmake.in ${PROJECT_BINARY_DIR}/TesseraConfig.cmake
                              INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/TesseraConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/TesseraConfig.cmake ${PROJECT_BINARY_DIR}/TesseraConfigVersion.cmake
              ${CMAKE_CURRENT_LIST_DIR}/FindOneDNN.cmake
              ${CMAKE_CURRENT_LIST_DIR}/FindPCRE2.cmake DESTINATION ${package_folder})
