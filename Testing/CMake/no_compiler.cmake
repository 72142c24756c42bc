# A toolchain for configuring an extension that has nothing to compile on a machine without compilers.
foreach(language C CXX)
  set(CMAKE_${language}_COMPILER ${CMAKE_COMMAND})
  set(CMAKE_${language}_COMPILER_FORCED ON)
  set(CMAKE_${language}_COMPILER_ID_RUN ON)
endforeach()
