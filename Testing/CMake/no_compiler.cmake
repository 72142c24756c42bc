# A toolchain for machines without compilers, for an extension that has nothing to compile.
foreach(language C CXX)
  set(CMAKE_${language}_COMPILER ${CMAKE_COMMAND})
  set(CMAKE_${language}_COMPILER_FORCED ON)
  set(CMAKE_${language}_COMPILER_ID_RUN ON)
endforeach()
