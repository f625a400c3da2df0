# The tests of the CUDA sources. On the simulator (SIM) they are ordinary tests; built by nvcc (ON)
# they carry the label gpu, for real devices. Where none answers they are skipped, and say so.

# What the tests of one kind have in common: gtest's own skips, and those of whole programs.
set(cuda_properties TIMEOUT 600
  SKIP_REGULAR_EXPRESSION
  "SKIPPED|no CUDA device answers here|have no CUDA device of their own")
if(LORASHARD_CUDA_BUILD STREQUAL "ON")
  list(APPEND cuda_properties LABELS gpu)
endif()

file(GLOB kernels_of_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cuda/*.cu)
lorashard_kernel_options(${kernels_of_tests})
lorashard_test(cuda parallel cuda_libraries PROPERTIES ${cuda_properties})
target_sources(test_cuda PRIVATE ${kernels_of_tests})

add_executable(test_nccl cuda/nccl_main.cpp)
target_link_libraries(test_nccl PRIVATE own_signals parallel cuda_libraries GTest::gtest)
foreach(ranks 2 3)
  lorashard_mpi_test(cuda.NcclRanks${ranks} test_nccl ${ranks})
  set_tests_properties(cuda.NcclRanks${ranks} PROPERTIES ${cuda_properties})
endforeach()

# The trainer and the program once more, with the CUDA backend.
function(lorashard_program_on_cuda)
  add_library(cuda_step_test OBJECT trainer/cuda_step_test.cpp)
  target_link_libraries(cuda_step_test PRIVATE trainer test_support cuda_libraries)
  target_link_libraries(test_trainer PRIVATE cuda_step_test)
  set(on_cuda ${cuda_properties} ENVIRONMENT LORASHARD_TEST_BACKEND=CUDA)
  gtest_discover_tests(test_trainer TEST_PREFIX cuda.trainer. DISCOVERY_TIMEOUT 60
    TEST_LIST cuda_trainer_tests TEST_FILTER
    "*Parity.*:*Layouts.GiveTheSame*:Overlap.Follows*:Recompute.*:Bf16.*:Dropout.*:Resume.Equals*:Epochs.Equal*:Dpo.*:*Cuda*"
    PROPERTIES ${on_cuda})
  gtest_discover_tests(test_launch TEST_PREFIX cuda.launch. DISCOVERY_TIMEOUT 60
    TEST_LIST cuda_launch_tests TEST_FILTER "Backends.*:*MainJob*:*Kill*:SilentPeer.*"
    PROPERTIES ${on_cuda})
  add_test(NAME cuda.selftest COMMAND lorashard selftest)
  set_tests_properties(cuda.selftest PROPERTIES ${cuda_properties})
endfunction()
