# The tests of the simulator itself (tests/cudasim/tests), and race checks by ThreadSanitizer of its
# kernels and the program's.

file(GLOB kernels_of_simulator CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cudasim/tests/*.cu)
lorashard_kernel_options(${kernels_of_simulator})
add_executable(test_cudasim cudasim/tests/kernel_test.cpp cudasim/tests/host_test.cpp
  cudasim/tests/capture_test.cpp
  cudasim/tests/kernels.cu)
target_include_directories(test_cudasim PRIVATE ${PROJECT_SOURCE_DIR})
target_link_libraries(test_cudasim PRIVATE cudasim GTest::gmock GTest::gtest_main)
gtest_discover_tests(test_cudasim TEST_PREFIX cudasim. PROPERTIES TIMEOUT 120)

# ThreadSanitizer sees each simulated thread as one of its own: a missing barrier is a data race.
# Only kernels are instrumented, so that any other code can be linked to them. The instrumented
# objects and the simulator made for them come before the libraries that hold uninstrumented ones,
# which are therefore not taken.
if(NOT LORASHARD_SANITIZE)
  get_target_property(simulator_sources cudasim SOURCES)
  list(TRANSFORM simulator_sources PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/cudasim/
    REGEX "^[^/]")
  add_library(cudasim_races OBJECT ${simulator_sources})
  target_include_directories(cudasim_races PRIVATE
    $<TARGET_PROPERTY:cudasim,INCLUDE_DIRECTORIES>)
  target_include_directories(cudasim_races SYSTEM PRIVATE ${CUDA_INCLUDE_DIR} ${NCCL_INCLUDE_DIR})
  target_compile_options(cudasim_races PRIVATE -O2)
  target_compile_definitions(cudasim_races PRIVATE CUDASIM_TSAN=1)

  function(lorashard_race_check name)
    add_executable(${name} ${ARGN} $<TARGET_OBJECTS:cudasim_races>)
    target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
    target_link_options(${name} PRIVATE -fsanitize=thread)
    target_link_libraries(${name} PRIVATE cudasim)
  endfunction()

  add_library(race_kernels OBJECT cudasim/tests/kernels.cu)
  target_include_directories(race_kernels PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(race_kernels PRIVATE cudasim)
  target_compile_options(race_kernels PRIVATE -fsanitize=thread)
  lorashard_race_check(test_race cudasim/tests/race_main.cpp $<TARGET_OBJECTS:race_kernels>)
  add_test(NAME cudasim.RaceFound COMMAND test_race missing)
  set_tests_properties(cudasim.RaceFound PROPERTIES PASS_REGULAR_EXPRESSION "data race")
  add_test(NAME cudasim.NoRace COMMAND test_race present)
  set_tests_properties(cudasim.NoRace PROPERTIES FAIL_REGULAR_EXPRESSION "data race")

  # The kernels of the program under the tests of tests/cuda, whose host code is taken as it is.
  # The order of threads does not matter to ThreadSanitizer: one is enough. Not part of `all`.
  file(GLOB program_kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/cuda/*.cu)
  lorashard_kernel_options(${program_kernels})
  add_library(race_program_kernels OBJECT EXCLUDE_FROM_ALL ${program_kernels} ${kernels_of_tests})
  target_link_libraries(race_program_kernels PRIVATE kernels cuda_libraries)
  target_compile_options(race_program_kernels PRIVATE -fsanitize=thread -O1)
  get_target_property(host_tests test_cuda SOURCES)
  list(FILTER host_tests INCLUDE REGEX "_test\\.cpp$")
  lorashard_race_check(test_cuda_races ${host_tests} $<TARGET_OBJECTS:race_program_kernels>)
  set_target_properties(test_cuda_races PROPERTIES EXCLUDE_FROM_ALL ON)
  target_link_libraries(test_cuda_races PRIVATE parallel cuda_libraries GTest::gtest_main
    GTest::gmock)
  target_compile_definitions(test_cuda_races PRIVATE LORASHARD_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  add_test(NAME cuda.Races COMMAND test_cuda_races
    --gtest_filter=-Nccl.*:*Reverse*:*Random* --gtest_brief=1)
  set_tests_properties(cuda.Races PROPERTIES TIMEOUT 600 ENVIRONMENT "OMP_NUM_THREADS=1")
endif()
