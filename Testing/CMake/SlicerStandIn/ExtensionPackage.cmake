# Write the extension's description and configure how the package is built.
set(EXTENSION_NAME ${PROJECT_NAME})
foreach(field HOMEPAGE CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS)
  if("${EXTENSION_${field}}" STREQUAL "")
    message(FATAL_ERROR "EXTENSION_${field} is not set")
  endif()
  if("${EXTENSION_${field}}" MATCHES "[;\n]")
    message(FATAL_ERROR "EXTENSION_${field} must be one line without semicolons")
  endif()
endforeach()
foreach(file README.md LICENSE.txt)
  if(NOT EXISTS "${PROJECT_SOURCE_DIR}/${file}")
    message(FATAL_ERROR "An extension needs a ${file} at its root")
  endif()
endforeach()

find_package(Git QUIET)
set(revision "local")
string(TIMESTAMP date "%Y-%m-%d" UTC)
if(Git_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} log -1 --format=%h\;%cs WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(commit)
    list(GET commit 0 revision)
    list(GET commit 1 date)
  endif()
endif()

set(description "${PROJECT_BINARY_DIR}/${EXTENSION_NAME}.s4ext")
file(WRITE "${description}" "\
# ${EXTENSION_NAME}: one key and its value per line
scm git
scmurl ${EXTENSION_HOMEPAGE}
scmrevision ${revision}
depends ${EXTENSION_DEPENDS}
build_subdirectory .
homepage ${EXTENSION_HOMEPAGE}
contributors ${EXTENSION_CONTRIBUTORS}
iconurl ${EXTENSION_ICONURL}
description ${EXTENSION_DESCRIPTION}
screenshoturls ${EXTENSION_SCREENSHOTURLS}
enabled 1
")
install(FILES "${description}" DESTINATION "${Slicer_SHARE_DIR}" COMPONENT RuntimeLibraries)

set(CPACK_GENERATOR "TGZ")
if(Slicer_OS STREQUAL "win")
  set(CPACK_GENERATOR "ZIP")
endif()
set(CPACK_MONOLITHIC_INSTALL ON)
set(CPACK_PACKAGE_VENDOR "${EXTENSION_CONTRIBUTORS}")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${EXTENSION_DESCRIPTION}")
set(CPACK_RESOURCE_FILE_LICENSE "${PROJECT_SOURCE_DIR}/LICENSE.txt")
set(CPACK_RESOURCE_FILE_README "${PROJECT_SOURCE_DIR}/README.md")
set(CPACK_PACKAGE_FILE_NAME
  "${Slicer_REVISION}-${Slicer_OS}-${Slicer_ARCHITECTURE}-${EXTENSION_NAME}-git${revision}-${date}")
include(CPack)
