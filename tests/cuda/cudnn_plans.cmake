# The test of cuDNN's plans, which needs cuDNN itself but no device (cudnn_plan_main.cpp).
if(CUDNN_PLANS_MISSING)
  add_test(NAME cuda.CudnnPlans
    COMMAND ${CMAKE_COMMAND} -E echo "SKIPPED: not found: ${CUDNN_PLANS_MISSING}")
else()
  add_library(driver_double SHARED cuda/driver_double.c)
  set_target_properties(driver_double PROPERTIES OUTPUT_NAME cuda SOVERSION 1
    LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests/driver_double)
  add_executable(test_cudnn_plans cuda/cudnn_plan_main.cpp
    ${PROJECT_SOURCE_DIR}/kernels/cuda/cudnn_graph.cpp)
  target_include_directories(test_cudnn_plans PRIVATE ${PROJECT_SOURCE_DIR})
  target_include_directories(test_cudnn_plans SYSTEM PRIVATE
    ${CUDA_INCLUDE_DIR} ${CUDNN_INCLUDE_DIR})
  lorashard_use_cudnn(test_cudnn_plans)
  target_compile_definitions(test_cudnn_plans PRIVATE
    LORASHARD_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_compile_options(test_cudnn_plans PRIVATE -O0)
  # cuDNN looks for libcuda.so.1 among the libraries that are loaded already.
  target_link_options(test_cudnn_plans PRIVATE -Wl,--no-as-needed)
  target_link_libraries(test_cudnn_plans PRIVATE driver_double ${CUDART_STATIC_LIBRARY}
    nlohmann_json::nlohmann_json GTest::gtest Threads::Threads rt ${CMAKE_DL_LIBS})
  add_test(NAME cuda.CudnnPlans COMMAND test_cudnn_plans)
endif()
set_tests_properties(cuda.CudnnPlans PROPERTIES TIMEOUT 900
  SKIP_REGULAR_EXPRESSION "SKIPPED")
