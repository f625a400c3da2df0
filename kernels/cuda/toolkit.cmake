# LORASHARD_CUDA: how the CUDA sources are built.
#   ON    by nvcc for sm_80, sm_90 and sm_100; an error where the toolkit, cuDNN or NCCL is missing
#   OFF   not at all
#   AUTO  ON where everything is there and a driver is loaded, else OFF
#   SIM   as C++ against the simulator of tests/cudasim; needs the toolkit's headers only
# Sets LORASHARD_CUDA_BUILD to ON, OFF or SIM and makes the target cuda_libraries for the first and
# the last. Only targets that call CUDA compile with it (PRIVATE): everything else has one object for
# every backend, which ccache compiles once.
set(LORASHARD_CUDA AUTO CACHE STRING "The CUDA backend: ON, OFF, AUTO or SIM")
set_property(CACHE LORASHARD_CUDA PROPERTY STRINGS ON OFF AUTO SIM)
if(NOT LORASHARD_CUDA MATCHES "^(ON|OFF|AUTO|SIM)$")
  message(FATAL_ERROR "LORASHARD_CUDA is ${LORASHARD_CUDA}; it takes ON, OFF, AUTO or SIM")
endif()

# How *.cu sources are compiled; to be called in the folder whose targets take them.
function(lorashard_kernel_options)
  if(LORASHARD_CUDA_BUILD STREQUAL "SIM")
    # Kernels read memory through vectors of other types, and never rely on a contracted a * b + c.
    set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX
      COMPILE_OPTIONS "-fno-strict-aliasing;-Wno-unknown-pragmas;-ffp-contract=off")
  else()
    # A kernel that spills registers to memory is an error.
    set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS
      "--Werror=all-warnings;-Xptxas=--warn-on-spills,--warning-as-error;-Xcompiler=-Wall,-Wextra")
  endif()
endfunction()

# Adds to TARGET the CUDA sources of FOLDER: *.cpp and *.cu.
function(lorashard_cuda_sources target folder)
  if(NOT LORASHARD_CUDA_BUILD)
    return()
  endif()
  file(GLOB host CONFIGURE_DEPENDS ${folder}/*.cpp)
  file(GLOB device CONFIGURE_DEPENDS ${folder}/*.cu)
  target_sources(${target} PRIVATE ${host} ${device})
  target_link_libraries(${target} PRIVATE cuda_libraries)
  lorashard_kernel_options(${device})
endfunction()

set(LORASHARD_CUDA_BUILD OFF)
if(LORASHARD_CUDA STREQUAL "OFF")
  return()
endif()

set(roots ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda /opt/cuda)
find_program(LORASHARD_NVCC nvcc HINTS ${roots} PATH_SUFFIXES bin)
find_path(CUDA_INCLUDE_DIR cuda_runtime.h HINTS ${roots} PATH_SUFFIXES include)
find_path(CUDNN_INCLUDE_DIR cudnn.h HINTS ${CUDA_INCLUDE_DIR})
find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDA_INCLUDE_DIR})
set(needed CUDA_INCLUDE_DIR NCCL_INCLUDE_DIR CUDNN_INCLUDE_DIR)
if(NOT LORASHARD_CUDA STREQUAL "SIM")
  foreach(library cudart_static cublasLt cudnn nccl)
    string(TOUPPER ${library} name)
    find_library(${name}_LIBRARY ${library} HINTS ${roots} PATH_SUFFIXES lib64 lib)
    list(APPEND needed ${name}_LIBRARY)
  endforeach()
  list(APPEND needed LORASHARD_NVCC)
endif()

set(missing "")
foreach(variable ${needed})
  if(NOT ${variable})
    list(APPEND missing ${variable})
  endif()
endforeach()
if(LORASHARD_CUDA STREQUAL "AUTO" AND NOT EXISTS /proc/driver/nvidia/version)
  list(APPEND missing "a loaded driver (LORASHARD_CUDA=ON builds without one)")
endif()
if(missing)
  list(JOIN missing ", " missing)
  if(LORASHARD_CUDA STREQUAL "AUTO")
    message(STATUS "CUDA backend: off (not found: ${missing})")
    return()
  endif()
  message(FATAL_ERROR "LORASHARD_CUDA=${LORASHARD_CUDA}, but these were not found: ${missing}. "
                      "Install the CUDA toolkit, cuDNN and NCCL, or set the variables.")
endif()

add_library(cuda_libraries INTERFACE)
target_include_directories(cuda_libraries SYSTEM INTERFACE
  ${CUDA_INCLUDE_DIR} ${CUDNN_INCLUDE_DIR} ${NCCL_INCLUDE_DIR})
target_compile_definitions(cuda_libraries INTERFACE LORASHARD_CUDA=1)

if(LORASHARD_CUDA STREQUAL "SIM")
  set(LORASHARD_CUDA_BUILD SIM)
  target_compile_definitions(cuda_libraries INTERFACE LORASHARD_CUDA_SIM=1)
  target_link_libraries(cuda_libraries INTERFACE cudasim)
  add_subdirectory(tests/cudasim)
else()
  set(LORASHARD_CUDA_BUILD ON)
  set(CMAKE_CUDA_COMPILER ${LORASHARD_NVCC})
  set(CMAKE_CUDA_ARCHITECTURES 80 90 100)
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc speaks C++20
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  if(CCACHE)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
  endif()
  # None of these needs a driver to load: the program starts, and runs on the CPU, without one.
  target_link_libraries(cuda_libraries INTERFACE
    ${CUBLASLT_LIBRARY} ${CUDNN_LIBRARY} ${NCCL_LIBRARY} ${CUDART_STATIC_LIBRARY} rt ${CMAKE_DL_LIBS})
endif()
message(STATUS "CUDA backend: ${LORASHARD_CUDA_BUILD}")
