// What a host compiler lacks of CUDA's device language, for kernels/cuda/portable.h. The CUDA
// headers themselves are the real ones.
#pragma once

#ifdef __CUDACC__
#error "the simulator's header in a compile for a device"
#endif

#define __launch_bounds__(...)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <tuple>
#include <type_traits>

namespace cudasim {

// Where in the source a barrier, collective or launch stands.
struct Site {
  const char* file = nullptr;
  unsigned line = 0;
  static constexpr Site here(const char* file = __builtin_FILE(),
                             unsigned line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const Site& other) const { return line == other.line && file == other.file; }
};

struct SimThread {
  uint3 thread_index, block_index;
  dim3 block_size, grid_size;
  unsigned number, lane, warp;
  uint8_t state;
  void* fiber;
  Site site;  // of the barrier or collective it reached last
};

extern constinit thread_local SimThread* current_thread;

void block_barrier(Site site);

// What the lanes of a warp gave to one exchange: `words` words each; lanes of `given` took part.
// Valid until the caller's next exchange but one.
struct Exchange {
  static constexpr int kMostWords = 16;
  const uint32_t (*word)[kMostWords];  // [lane][i]
  uint32_t given;
  bool has(unsigned lane) const { return given >> lane & 1u; }
};

// Waits until every lane of `mask` gave its words. Lanes that exist and are named must all come, to
// the same site.
Exchange warp_exchange(uint32_t mask, const uint32_t* words, int count, Site site = Site::here());

// `bytes` of the block's shared memory, the same for all threads at one declaration.
void* shared_array(const void* declaration, size_t bytes);
void* dynamic_shared();
[[noreturn]] void trap(const char* what, Site site);

template <class T>
T* dyn_shared() {
  return static_cast<T*>(dynamic_shared());
}

// Lane `me`'s view of an exchange of values: value of lane `from`, all-ones (a NaN) where that lane
// took no part.
template <class T>
class Exchanged {
  static constexpr int kWords = (sizeof(T) + 3) / 4;
  static_assert(std::is_trivially_copyable_v<T> && kWords <= Exchange::kMostWords);

 public:
  Exchanged(uint32_t mask, const T& value, Site site) {
    uint32_t words[kWords] = {};
    std::memcpy(words, &value, sizeof value);
    exchange_ = warp_exchange(mask, words, kWords, site);
  }
  T of(unsigned lane) const {
    T value;
    if (exchange_.has(lane))
      std::memcpy(&value, exchange_.word[lane], sizeof value);
    else
      std::memset(static_cast<void*>(&value), 0xff, sizeof value);
    return value;
  }
  Exchange exchange() const { return exchange_; }

 private:
  Exchange exchange_;
};

// A grid's size and where it is launched.
struct Grid {
  Grid(dim3 size, Site site = Site::here()) : size(size), site(site) {}
  Grid(unsigned x, Site site = Site::here()) : size(x), site(site) {}
  Grid(int x, Site site = Site::here()) : size(unsigned(x)), site(site) {}
  dim3 size;
  Site site;
};

cudaError_t enqueue_kernel(cudaStream_t stream, Grid grid, dim3 block, size_t shared_bytes,
                           const void* kernel, std::shared_ptr<const void> call,
                           void (*body)(const void* call));

template <class... P, class... A>
[[nodiscard]] cudaError_t launch(void (*kernel)(P...), Grid grid, dim3 block, size_t shared_bytes,
                                 cudaStream_t stream, A&&... arguments) {
  struct Call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
  };
  return enqueue_kernel(
      stream, grid, block, shared_bytes, reinterpret_cast<const void*>(kernel),
      std::make_shared<const Call>(Call{kernel, std::tuple<P...>(static_cast<P>(arguments)...)}),
      [](const void* p) {
        const Call& call = *static_cast<const Call*>(p);
        std::apply(call.kernel, call.arguments);
      });
}

}  // namespace cudasim

#define SHARED_ARRAY(T, name, N)                       \
  T(&name)                                             \
  [N] = *static_cast<T(*)[N]>(::cudasim::shared_array( \
      []() -> const void* {                            \
        static const char declaration = 0;             \
        return &declaration;                           \
      }(),                                             \
      sizeof(T) * (N)))

#define threadIdx (::cudasim::current_thread->thread_index)
#define blockIdx (::cudasim::current_thread->block_index)
#define blockDim (::cudasim::current_thread->block_size)
#define gridDim (::cudasim::current_thread->grid_size)
inline constexpr int warpSize = 32;

// ---- barriers and warp collectives

inline void __syncthreads(cudasim::Site site = cudasim::Site::here()) {
  cudasim::block_barrier(site);
}
inline void __syncwarp(unsigned mask = ~0u, cudasim::Site site = cudasim::Site::here()) {
  cudasim::warp_exchange(mask, nullptr, 0, site);
}

// `width`, a power of two, divides the warp into parts that exchange among themselves.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              cudasim::Site site = cudasim::Site::here()) {
  const cudasim::Exchanged<T> all(mask, value, site);
  const unsigned part = cudasim::current_thread->lane & ~unsigned(width - 1);
  return all.of(part + (unsigned(source) & unsigned(width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  cudasim::Site site = cudasim::Site::here()) {
  const cudasim::Exchanged<T> all(mask, value, site);
  const unsigned me = cudasim::current_thread->lane, from = me ^ unsigned(lanes);
  return from >= (me & ~unsigned(width - 1)) + unsigned(width) ? value : all.of(from);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   cudasim::Site site = cudasim::Site::here()) {
  const cudasim::Exchanged<T> all(mask, value, site);
  const unsigned me = cudasim::current_thread->lane, from = me + delta;
  return from >= (me & ~unsigned(width - 1)) + unsigned(width) ? value : all.of(from);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 cudasim::Site site = cudasim::Site::here()) {
  const cudasim::Exchanged<T> all(mask, value, site);
  const unsigned me = cudasim::current_thread->lane, part = me & ~unsigned(width - 1);
  return me < part + delta ? value : all.of(me - delta);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              cudasim::Site site = cudasim::Site::here()) {
  const uint32_t mine = predicate != 0;
  const cudasim::Exchange all = cudasim::warp_exchange(mask, &mine, 1, site);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (all.has(lane) && all.word[lane][0]) votes |= 1u << lane;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, cudasim::Site site = cudasim::Site::here()) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, cudasim::Site site = cudasim::Site::here()) {
  return __ballot_sync(mask, !predicate, site) == 0;
}

// ---- atomics: std::atomic_ref, so that ThreadSanitizer knows them

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  return std::atomic_ref<T>(*p).fetch_add(v, std::memory_order_relaxed);
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  return std::atomic_ref<T>(*p).exchange(v, std::memory_order_relaxed);
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  std::atomic_ref<T>(*p).compare_exchange_strong(expected, v, std::memory_order_relaxed);
  return expected;
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  const std::atomic_ref<T> ref(*p);
  T old = ref.load(std::memory_order_relaxed);
  while (old < v && !ref.compare_exchange_weak(old, v, std::memory_order_relaxed)) {
  }
  return old;
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  const std::atomic_ref<T> ref(*p);
  T old = ref.load(std::memory_order_relaxed);
  while (v < old && !ref.compare_exchange_weak(old, v, std::memory_order_relaxed)) {
  }
  return old;
}
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() { std::atomic_thread_fence(std::memory_order_seq_cst); }
#define __trap() ::cudasim::trap("__trap", ::cudasim::Site::here())

// ---- memory

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, std::type_identity_t<T> v) {
  *p = v;
}

// ---- arithmetic. glibc declares __expf and its like without exporting them: they must be macros.

#define __expf(x) (::std::exp(float(x)))
#define __exp2f(x) (::std::exp2(float(x)))
#define __logf(x) (::std::log(float(x)))
#define __log2f(x) (::std::log2(float(x)))
#define __powf(x, y) (::std::pow(float(x), float(y)))
#define __sinf(x) (::std::sin(float(x)))
#define __cosf(x) (::std::cos(float(x)))
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __frsqrt_rn(float x) { return float(1.0 / std::sqrt(double(x))); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
// A product and a sum that the compiler must not join to an fma: the host's never does
// (-ffp-contract=off).
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __dadd_rn(double x, double y) { return x + y; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
inline int __float2int_rn(float x) { return int(std::nearbyint(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __double2float_rn(double x) { return float(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned((uint64_t{x} * y) >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(x) * y) >> 64);
}
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(unsigned(x)) + 1; }
template <class T>
constexpr T min(T x, T y) {
  return y < x ? y : x;
}
template <class T>
constexpr T max(T x, T y) {
  return x < y ? y : x;
}
