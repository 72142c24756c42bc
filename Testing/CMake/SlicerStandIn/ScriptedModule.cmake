# Copy a scripted module's files into the build tree and install that copy. Files that the lists omit are in neither.
function(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MODULE "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MODULE_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule got unknown arguments: ${MODULE_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT MODULE_NAME)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule needs a NAME")
  endif()

  set(scripts)
  foreach(script IN LISTS MODULE_SCRIPTS)
    # A script may be listed without its suffix.
    if(NOT script MATCHES "\\.py$")
      string(APPEND script ".py")
    endif()
    list(APPEND scripts ${script})
  endforeach()

  set(copies)
  foreach(file IN LISTS scripts MODULE_RESOURCES)
    set(source "${CMAKE_CURRENT_SOURCE_DIR}/${file}")
    set(copy "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}/${file}")
    if(NOT EXISTS "${source}" OR IS_DIRECTORY "${source}")
      message(FATAL_ERROR "${MODULE_NAME} lists '${file}', which is not a file in its folder")
    endif()
    if(copy IN_LIST copies)
      message(FATAL_ERROR "${MODULE_NAME} lists '${file}' twice")
    endif()
    add_custom_command(OUTPUT "${copy}" DEPENDS "${source}"
      COMMAND ${CMAKE_COMMAND} -E copy "${source}" "${copy}" VERBATIM)
    list(APPEND copies "${copy}")
  endforeach()

  add_custom_target(Copy${MODULE_NAME}Files ALL DEPENDS ${copies})
  get_property(installed GLOBAL PROPERTY SCRIPTED_MODULES_INSTALLED)
  if(NOT installed)
    # All modules share one folder.
    set_property(GLOBAL PROPERTY SCRIPTED_MODULES_INSTALLED ON)
    install(DIRECTORY "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}/"
      DESTINATION "${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}" COMPONENT RuntimeLibraries)
  endif()
endfunction()

# The module's self-test needs the real application; only its existence is checked here.
function(slicer_add_python_unittest)
  cmake_parse_arguments(TEST "" "SCRIPT;TESTNAME_PREFIX" "SLICER_ARGS" ${ARGN})
  if(TEST_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "slicer_add_python_unittest got unknown arguments: ${TEST_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${TEST_SCRIPT}")
    message(FATAL_ERROR "The self-test '${TEST_SCRIPT}' does not exist")
  endif()
endfunction()
