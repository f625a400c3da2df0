// The functions of the CUDA runtime beside streams and events, with the prototypes of its headers.
#include <cuda_runtime.h>
#include <cudasim/arena.h>
#include <cudasim/block.h>
#include <cudasim/counts.h>
#include <cudasim/queue.h>
#include <cudasim/settings.h>
#include <cudasim/violation.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

namespace {

using namespace cudasim;

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t note(cudaError_t status) {
  if (status != cudaSuccess && status != cudaErrorNotReady) last_error = status;
  return status;
}

// Host memory of cudaMallocHost, and what kernels were allowed of dynamic shared memory.
struct Registry {
  std::mutex mutex;
  std::map<char*, size_t> pinned;
  std::map<const void*, size_t> shared_bytes;
};

Registry& registry() {
  static Registry* r = new Registry;
  return *r;
}

bool is_pinned(const void* p, size_t bytes) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  auto* q = static_cast<char*>(const_cast<void*>(p));
  auto next = r.pinned.upper_bound(q);
  if (next == r.pinned.begin()) return false;
  --next;
  return q + bytes <= next->first + next->second;
}

// Do the ends of a copy lie where its kind says?
bool ends_fit(const void* to, size_t to_bytes, const void* from, size_t from_bytes,
              cudaMemcpyKind kind) {
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (kind != cudaMemcpyHostToDevice && kind != cudaMemcpyDeviceToHost &&
      kind != cudaMemcpyDeviceToDevice)
    return false;
  return (to_device ? arena_holds(to, to_bytes) : !arena_owns(to)) &&
         (from_device ? arena_holds(from, from_bytes) : !arena_owns(from));
}

}  // namespace

namespace cudasim {

Counts& counts() {
  static Counts c;
  return c;
}

cudaError_t enqueue_kernel(cudaStream_t stream, Grid grid, dim3 block, size_t shared_bytes,
                           const void* kernel, std::shared_ptr<const void> call,
                           void (*body)(const void* call)) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const dim3 g = grid.size;
  if (threads == 0 || threads > kMostThreads || block.z > 64 || g.x == 0 || g.y == 0 || g.z == 0 ||
      g.x > 0x7fffffffu || g.y > kMostGridYZ || g.z > kMostGridYZ)
    return note(cudaErrorInvalidConfiguration);
  {
    Registry& r = registry();
    const std::lock_guard lock(r.mutex);
    const auto allowed = r.shared_bytes.find(kernel);
    const size_t most = allowed == r.shared_bytes.end()
                            ? kMostStaticShared
                            : std::max(kMostStaticShared, allowed->second);
    if (shared_bytes > most) return note(cudaErrorInvalidValue);
  }
  Launch launch{g, block, shared_bytes, grid.site, std::move(call), body};
  return note(
      enqueue_call(stream, [launch = std::move(launch)] { BlockRunner::mine().run(launch); }));
}

}  // namespace cudasim

extern "C" {

// ---- errors

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorString(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "no error";
    case cudaErrorLaunchFailure:
      return violation_text();
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureUnjoined:
      return "capturing stream has unjoined work";
    case cudaErrorStreamCaptureIsolation:
      return "dependency created on uncaptured work in another stream";
    case cudaErrorCapturedEvent:
      return "operation not permitted on an event last recorded in a capturing stream";
    default:
      return "error of the simulator";
  }
}

const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureUnjoined:
      return "cudaErrorStreamCaptureUnjoined";
    case cudaErrorStreamCaptureIsolation:
      return "cudaErrorStreamCaptureIsolation";
    case cudaErrorCapturedEvent:
      return "cudaErrorCapturedEvent";
    default:
      return "cudaErrorUnknown";
  }
}

// ---- devices: like an H100

cudaError_t cudaGetDeviceCount(int* count) {
  *count = settings().devices;
  return *count > 0 ? cudaSuccess : note(cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device();
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= settings().devices) return note(cudaErrorInvalidDevice);
  current_device() = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  switch (which) {
    case cudaDevAttrMultiProcessorCount:
      *value = 132;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = int(kMostShared);
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = 228 << 10;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      return cudaSuccess;
    default:
      return note(cudaErrorInvalidValue);
  }
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= settings().devices) return note(cudaErrorInvalidDevice);
  *properties = {};
  std::strcpy(properties->name, "simulated");
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* all_bytes) {
  *all_bytes = settings().memory_bytes;
  *free_bytes = *all_bytes - arena_used(current_device());
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute which, int value) {
  if (which != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;  // hints
  if (value < 0 || size_t(value) > kMostShared) return note(cudaErrorInvalidValue);
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  r.shared_bytes[kernel] = size_t(value);
  return cudaSuccess;
}

// ---- memory

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (const auto e = refuse_in_capture(cudaErrorStreamCaptureUnsupported)) return note(e);
  ++counts().allocations;
  if (has_violation(current_device())) return note(cudaErrorLaunchFailure);
  *memory = arena_allocate(bytes, current_device());
  return *memory ? cudaSuccess : note(cudaErrorMemoryAllocation);
}

// As on a device, all that was enqueued ends first.
cudaError_t cudaFree(void* memory) {
  if (!memory) return cudaSuccess;
  if (const auto e = refuse_in_capture(cudaErrorStreamCaptureUnsupported)) return note(e);
  ++counts().releases;
  const cudaError_t status = run_device();
  return arena_release(memory) ? note(status) : note(cudaErrorInvalidValue);
}

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  if (const auto e = refuse_in_capture(cudaErrorStreamCaptureUnsupported)) return note(e);
  ++counts().allocations;
  *memory = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  if (!*memory) return note(cudaErrorMemoryAllocation);
  std::memset(*memory, 0xff, bytes);
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  r.pinned[static_cast<char*>(*memory)] = bytes;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* memory) {
  if (const auto e = refuse_in_capture(cudaErrorStreamCaptureUnsupported)) return note(e);
  ++counts().releases;
  Registry& r = registry();
  {
    const std::lock_guard lock(r.mutex);
    if (r.pinned.erase(static_cast<char*>(memory)) == 0) return note(cudaErrorInvalidValue);
  }
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t rows, cudaMemcpyKind kind, cudaStream_t stream) {
  if (width == 0 || rows == 0) return cudaSuccess;
  if (to_pitch < width || from_pitch < width) return note(cudaErrorInvalidValue);
  const size_t to_bytes = (rows - 1) * to_pitch + width;
  const size_t from_bytes = (rows - 1) * from_pitch + width;
  if (!ends_fit(to, to_bytes, from, from_bytes, kind)) return note(cudaErrorInvalidValue);
  auto* target = static_cast<char*>(to);
  const auto* source = static_cast<const char*>(from);
  const auto copy = [=](const char* read_from) {
    for (size_t r = 0; r < rows; ++r)
      std::memcpy(target + r * to_pitch, read_from + r * from_pitch, width);
  };
  const bool pageable = (kind == cudaMemcpyHostToDevice && !is_pinned(from, from_bytes)) ||
                        (kind == cudaMemcpyDeviceToHost && !is_pinned(to, to_bytes));
  if (pageable) {
    // A graph would read or write it at each launch, when the caller may have other things there.
    if (!stream) return note(cudaErrorInvalidResourceHandle);
    if (const auto e = refuse_captured(stream)) return note(e);
    ++counts().pageable_copies;
  }
  // The driver reads pageable memory before it returns, page-locked memory when the copy runs.
  if (pageable && kind == cudaMemcpyHostToDevice)
    return note(enqueue_call(
        stream,
        [copy, taken = std::vector<char>(source, source + from_bytes)] { copy(taken.data()); }));
  return note(enqueue_made(stream, [=](cudaStream_t) -> Work {
    // Who reads the target before the copy is done reads NaN.
    if (kind == cudaMemcpyDeviceToHost)
      for (size_t r = 0; r < rows; ++r) std::memset(target + r * to_pitch, 0xff, width);
    return [copy, source] { return copy(source), true; };
  }));
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  if (!arena_holds(memory, bytes)) return note(cudaErrorInvalidValue);
  return note(enqueue_call(stream, [=] { std::memset(memory, value, bytes); }));
}

}  // extern "C"
