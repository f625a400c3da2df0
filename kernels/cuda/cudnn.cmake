# cuDNN's frontend, headers only, which kernels/cuda/cudnn_graph.cpp needs. Taken from
# LORASHARD_CUDNN_FRONTEND (a folder with cudnn_frontend.h), or else fetched from PyPI into the
# build folder, where pip is at hand. Without it everything else is built, and the own attention
# kernels serve.
set(LORASHARD_CUDNN_FRONTEND "" CACHE PATH "Folder of cudnn_frontend.h; empty: fetched by pip")
set(CUDNN_FRONTEND_DIR "")
set(CUDNN_PLANS_MISSING "")
if(NOT LORASHARD_CUDA_BUILD)
  set(CUDNN_PLANS_MISSING "the CUDA backend")
  return()
endif()

find_library(CUDNN_LIBRARY cudnn HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda /opt/cuda
  PATH_SUFFIXES lib64 lib)
find_library(NVRTC_LIBRARY nvrtc HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda /opt/cuda
  PATH_SUFFIXES lib64 lib)
find_library(CUDART_STATIC_LIBRARY cudart_static HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda
  /opt/cuda PATH_SUFFIXES lib64 lib)

# Fetches the wheel, whose content is fixed by its hash, and unpacks it.
function(lorashard_fetch_cudnn_frontend)
  set(folder ${PROJECT_BINARY_DIR}/cudnn_frontend)
  find_program(LORASHARD_PYTHON NAMES python3 python)
  if(NOT EXISTS ${folder}/include/cudnn_frontend.h AND LORASHARD_PYTHON)
    file(WRITE ${folder}/requirements.txt "nvidia-cudnn-frontend==1.32.0 \
--hash=sha256:c6006556017a4d1c914c52a556c71b1267f2d6a0500f742e7b4edef539878df0\n")
    execute_process(
      COMMAND ${LORASHARD_PYTHON} -m pip download --quiet --disable-pip-version-check --no-deps
        --only-binary=:all: --platform manylinux_2_28_x86_64 --implementation cp
        --python-version 3.11 --require-hashes -r ${folder}/requirements.txt -d ${folder}
      RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET TIMEOUT 120)
    file(GLOB wheel ${folder}/*.whl)
    if(status EQUAL 0 AND wheel)
      file(ARCHIVE_EXTRACT INPUT ${wheel} DESTINATION ${folder} PATTERNS "include/*")
      file(REMOVE ${wheel})
    endif()
  endif()
  if(EXISTS ${folder}/include/cudnn_frontend.h)
    set(CUDNN_FRONTEND_DIR ${folder}/include PARENT_SCOPE)
  endif()
endfunction()

if(LORASHARD_CUDNN_FRONTEND)
  if(NOT EXISTS ${LORASHARD_CUDNN_FRONTEND}/cudnn_frontend.h)
    message(FATAL_ERROR "LORASHARD_CUDNN_FRONTEND is ${LORASHARD_CUDNN_FRONTEND}, which holds no "
                        "cudnn_frontend.h")
  endif()
  set(CUDNN_FRONTEND_DIR ${LORASHARD_CUDNN_FRONTEND})
elseif(CUDNN_LIBRARY AND NVRTC_LIBRARY)
  lorashard_fetch_cudnn_frontend()
endif()

foreach(needed CUDNN_LIBRARY NVRTC_LIBRARY CUDART_STATIC_LIBRARY CUDNN_FRONTEND_DIR)
  if(NOT ${needed})
    list(APPEND CUDNN_PLANS_MISSING ${needed})
  endif()
endforeach()
if(CUDNN_PLANS_MISSING)
  list(JOIN CUDNN_PLANS_MISSING ", " CUDNN_PLANS_MISSING)
  message(STATUS "cuDNN attention: off (not found: ${CUDNN_PLANS_MISSING}); own kernels serve")
endif()

# Gives a target's cudnn_graph.cpp and attention_cudnn.cpp their cuDNN.
function(lorashard_use_cudnn target)
  target_compile_definitions(${target} PRIVATE LORASHARD_CUDNN=1)
  target_include_directories(${target} SYSTEM PRIVATE ${CUDNN_FRONTEND_DIR})
  target_link_libraries(${target} PUBLIC ${CUDNN_LIBRARY} ${NVRTC_LIBRARY})
endfunction()
