# Builds and runs the project in this folder against Girih: WAY is "installed" (BUILD, a finished
# build, is installed into a temporary folder first) or "subdirectory" (SOURCE is built anew).
# Works in a fresh folder below SCRATCH.
set(folder ${SCRATCH}/package_${WAY})
file(REMOVE_RECURSE ${folder})

function(run)
  execute_process(COMMAND ${ARGN} OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nfailed (${result}):\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

if(WAY STREQUAL "installed")
  run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${folder}/prefix)
  # What the library is built with must not be needed to use it.
  set(options -DCMAKE_PREFIX_PATH=${folder}/prefix -DCMAKE_DISABLE_FIND_PACKAGE_fmt=ON
              -DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON)
else()
  set(options -DGIRIH_SOURCE=${SOURCE} -DCMAKE_CXX_FLAGS_DEBUG=-O0)  # without -g: half the time
endif()

run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${folder}/build -DCMAKE_BUILD_TYPE=Debug
    -DCMAKE_C_COMPILER=${C_COMPILER} -DCMAKE_CXX_COMPILER=${CXX_COMPILER} ${options})
run(${CMAKE_COMMAND} --build ${folder}/build -j2)
foreach(program consumer c_consumer)
  run(${folder}/build/${program})
  if(NOT output MATCHES "^causal & \\(sink\\(4\\) \\| window\\(left=63\\)\\)\n[0-9]+\\.[0-9]+\\.[0-9]+\n$")
    message(FATAL_ERROR "${program} printed:\n${output}")
  endif()
endforeach()

if(WAY STREQUAL "installed")
  foreach(file include/girih/girih.hpp include/girih/girih.h)
    if(NOT EXISTS ${folder}/prefix/${file})
      message(FATAL_ERROR "${file} was not installed")
    endif()
  endforeach()
  if(PROGRAM)
    run(${folder}/prefix/bin/girih show causal)
  endif()
endif()
file(REMOVE_RECURSE ${folder})
