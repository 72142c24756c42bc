# What an extension can call after including the use file.
include(CTest)
include("${CMAKE_CURRENT_LIST_DIR}/ScriptedModule.cmake")
