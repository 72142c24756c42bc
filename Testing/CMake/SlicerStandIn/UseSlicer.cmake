# What an extension may call once it has included the use file.
include(CTest)
include("${CMAKE_CURRENT_LIST_DIR}/ScriptedModule.cmake")
