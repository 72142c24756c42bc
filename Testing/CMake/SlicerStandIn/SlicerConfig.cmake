# What find_package(Slicer) provides: the version, the folders in an extension's package, and the files to include.
set(Slicer_VERSION "5.12" CACHE STRING "major.minor of the Slicer that the package is for")
set(Slicer_OS "linux" CACHE STRING "linux or win")
if(NOT Slicer_VERSION MATCHES "^5\\.[0-9]+$")
  message(FATAL_ERROR "Slicer_VERSION is '${Slicer_VERSION}', but must have the form 5.12")
endif()
if(NOT Slicer_OS MATCHES "^(linux|win)$")
  message(FATAL_ERROR "Slicer_OS is '${Slicer_OS}', but must be linux or win")
endif()

set(Slicer_ARCHITECTURE "amd64")
# A built Slicer has a revision number here; for a package of Python files the version is enough.
set(Slicer_REVISION ${Slicer_VERSION})
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR "lib/Slicer-${Slicer_VERSION}/qt-scripted-modules")
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR ${Slicer_QTSCRIPTEDMODULES_LIB_DIR})
set(Slicer_SHARE_DIR "share/Slicer-${Slicer_VERSION}")

set(Slicer_USE_FILE "${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake")
set(Slicer_EXTENSION_GENERATE_CONFIG "${CMAKE_CURRENT_LIST_DIR}/GenerateConfig.cmake")
set(Slicer_EXTENSION_CPACK "${CMAKE_CURRENT_LIST_DIR}/ExtensionPackage.cmake")
