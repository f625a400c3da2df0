// All-reduce between real MPI ranks, started by ctest with several rank counts: the shared window
// against MPI's messages and against a serial sum.
//   mpirun -n N test_mpi_collectives [--expect-messages] [GTEST FLAGS]
// --expect-messages: there is no window to be had here; the all-reduces must go by messages.
#include <gtest/gtest.h>
#include <mpi.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <string_view>
#include <thread>

#include "kernels/float_types.h"
#include "parallel/mesh.h"
#include "parallel/mpi.h"

namespace lorashard {
namespace {

bool expect_messages = false;
Communicator *by_memory = nullptr, *by_messages = nullptr;

// Every rank can make every rank's part. Values of many magnitudes, so that the order of a sum of
// three or more shows in its last bits.
double part_value(int rank, int64_t i, int salt) {
  uint64_t z = uint64_t(i) * 0x9e3779b97f4a7c15u + uint64_t(rank * 1000 + salt + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return std::ldexp(double(int64_t(z >> 12)) - 0x1p51, int(z % 12) - 56);
}

template <class T>
T make(double v);
template <>
float make(double v) {
  return float(v);
}
template <>
double make(double v) {
  return v;
}
template <>
int64_t make(double v) {
  return int64_t(v * 0x1p40);
}
template <>
uint16_t make(double v) {
  return float_to_bf16(float(v));
}

template <class T>
DType dtype_of();
template <>
DType dtype_of<float>() {
  return DType::F32;
}
template <>
DType dtype_of<double>() {
  return DType::F64;
}
template <>
DType dtype_of<int64_t>() {
  return DType::I64;
}
template <>
DType dtype_of<uint16_t>() {
  return DType::BF16;
}

template <class T>
std::vector<T> part(int rank, int64_t n, int salt) {
  std::vector<T> values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) values[size_t(i)] = make<T>(part_value(rank, i, salt));
  return values;
}

// In rank order, in fp32 for bf16, rounded once.
template <class T>
std::vector<T> serial_sum(int ranks, int64_t n, int salt) {
  std::vector<T> sum(static_cast<size_t>(n));
  std::vector<std::vector<T>> parts;
  for (int r = 0; r < ranks; ++r) parts.push_back(part<T>(r, n, salt));
  for (size_t i = 0; i < sum.size(); ++i) {
    if constexpr (sizeof(T) == 2) {
      float total = bf16_to_float(parts[0][i]);
      for (int r = 1; r < ranks; ++r) total += bf16_to_float(parts[size_t(r)][i]);
      sum[i] = float_to_bf16(total);
    } else {
      sum[i] = parts[0][i];
      for (int r = 1; r < ranks; ++r) sum[i] += parts[size_t(r)][i];
    }
  }
  return sum;
}

template <class T>
double number(T v) {
  return sizeof(T) == 2 ? bf16_to_float(uint16_t(v)) : double(v);
}

template <class T>
uint64_t digest(const std::vector<T>& values) {
  uint64_t h = 1469598103934665603u;
  for (const auto byte :
       std::string_view(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T))) {
    h = (h ^ uint8_t(byte)) * 1099511628211u;
  }
  return h;
}

template <class T>
void expect_equal_on_all_ranks(Communicator& c, const std::vector<T>& x) {
  const uint64_t mine = digest(x);
  std::vector<uint64_t> all(size_t(c.size()));
  c.all_gather(&mine, all.data(), sizeof mine, "digests");
  for (const uint64_t h : all) EXPECT_EQ(h, mine);
}

// Of two sums of n parts of at most 64: n roundings of values of at most 64 n between them.
template <class T>
double tolerance(int n) {
  if (dtype_of<T>() == DType::I64) return 0;
  const double rounding = sizeof(T) == 2 ? 0x1p-9 : sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
  return n * 64.0 * n * rounding;
}

template <class T>
void check_sums(Communicator& memory, Communicator& messages, int64_t n, int threads = 1) {
  SCOPED_TRACE("elements " + std::to_string(n) + ", type " + std::string(name_of(dtype_of<T>())));
  Stream stream(threads);
  const int ranks = memory.size(), salt = int(n % 97);
  std::vector<T> x = part<T>(memory.rank(), n, salt), y = x;
  const std::vector<T> expected = serial_sum<T>(ranks, n, salt);
  memory.all_reduce_sum(stream, matrix(x.data(), 1, n, dtype_of<T>()), "x");
  messages.all_reduce_sum(stream, matrix(y.data(), 1, n, dtype_of<T>()), "y");
  expect_equal_on_all_ranks(memory, x);
  expect_equal_on_all_ranks(messages, y);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    worst = std::max(worst, std::abs(number(y[i]) - number(expected[i])));
  }
  EXPECT_LE(worst, tolerance<T>(ranks)) << "messages";
  if (ranks > 1 && n > 0) {
    EXPECT_EQ(reduces_in_shared_memory(memory), !expect_messages);
    EXPECT_FALSE(reduces_in_shared_memory(messages));
  }
  if (!expect_messages && !x.empty()) {
    EXPECT_EQ(std::memcmp(x.data(), expected.data(), x.size() * sizeof(T)), 0)
        << "the window's sum is not the serial sum in rank order";
  }
}

// Nothing, one, odd, around the cache line, the switch between the two ways of summing, the chunk
// of 131072 floats.
const int64_t kSizes[] = {0,    1,     2,     3,     15,     16,     17,     1023,
                          4096, 16385, 32769, 65537, 131071, 131072, 131073, 200003};

TEST(MpiSums, EverySizeInEveryType) {
  for (const int64_t n : kSizes) {
    check_sums<float>(*by_memory, *by_messages, n);
    check_sums<uint16_t>(*by_memory, *by_messages, n);
    check_sums<double>(*by_memory, *by_messages, n);
    check_sums<int64_t>(*by_memory, *by_messages, n);
  }
  check_sums<float>(*by_memory, *by_messages, 1700001);
}

// A rank's slice of the sum has the bits of the whole sum; gathered, they are the whole sum.
template <class T>
void check_slices(Communicator& c, bool serial, int64_t slice, int threads) {
  SCOPED_TRACE("elements of a slice " + std::to_string(slice));
  Stream stream(threads);
  const int64_t n = slice * c.size();
  std::vector<T> x = part<T>(c.rank(), n, 5);
  const std::vector<T> expected = serial_sum<T>(c.size(), n, 5);
  const Matrix all = matrix(x.data(), 1, n, dtype_of<T>());
  c.reduce_scatter_sum(stream, all, "x");
  if (serial && slice > 0) {
    const auto at = size_t(slice * c.rank());
    EXPECT_EQ(std::memcmp(x.data() + at, expected.data() + at, size_t(slice) * sizeof(T)), 0);
  }
  c.all_gather_slices(stream, all, "x");
  expect_equal_on_all_ranks(c, x);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i)
    worst = std::max(worst, std::abs(number(x[i]) - number(expected[i])));
  EXPECT_LE(worst, tolerance<T>(c.size()));
}

TEST(MpiSums, SlicesOfASum) {
  for (const int64_t slice : {0, 1, 15, 16, 4097, 65536, 131073, 300001}) {
    for (const int threads : {1, 3}) {
      check_slices<float>(*by_memory, !expect_messages, slice, threads);
      check_slices<uint16_t>(*by_memory, !expect_messages, slice, threads);
    }
    check_slices<float>(*by_messages, false, slice, 1);
  }
}

TEST(MpiSums, ThreadsChangeNothing) {
  check_sums<float>(*by_memory, *by_messages, 589824, 3);
  check_sums<uint16_t>(*by_memory, *by_messages, 589825, 3);
  check_sums<double>(*by_memory, *by_messages, 70001, 3);
}

// Ranks fall behind each other by turns; a buffer that is written again too early would show.
TEST(MpiSums, RepeatedCallsWithStragglers) {
  Stream stream(1);
  const int ranks = by_memory->size(), rank = by_memory->rank();
  for (int call = 0; call < 400; ++call) {
    const int64_t n = call % 3 == 0 ? 7 : call % 3 == 1 ? 5000 : 150001;
    if (call % 5 == 0 && call / 5 % ranks == rank) {
      std::this_thread::sleep_for(std::chrono::microseconds(call % 7 * 400));
    }
    std::vector<float> x(static_cast<size_t>(n), float(rank + call));
    by_memory->all_reduce_sum(stream, matrix(x.data(), 1, n, DType::F32), "x");
    const auto expected = float(ranks * call + ranks * (ranks - 1) / 2);
    EXPECT_EQ(std::count(x.begin(), x.end(), expected), n) << "call " << call;
  }
}

TEST(MpiSums, NanAndInfinityPassThrough) {
  Stream stream(1);
  std::vector<float> x(100, 1.0f);
  if (by_memory->rank() == by_memory->size() - 1) x[3] = NAN, x[4] = INFINITY;
  by_memory->all_reduce_sum(stream, matrix(x.data(), 1, 100, DType::F32), "x");
  EXPECT_TRUE(std::isnan(x[3]));
  EXPECT_TRUE(std::isinf(x[4]));
  expect_equal_on_all_ranks(*by_memory, x);
}

TEST(MpiSums, SplitCommunicatorsAndTheirParents) {
  const int ranks = by_memory->size();
  for (const int tensor : {1, 2, ranks}) {
    if (ranks % tensor != 0) continue;
    SCOPED_TRACE("tensor " + std::to_string(tensor));
    const Mesh memory = make_mesh(*by_memory, tensor), messages = make_mesh(*by_messages, tensor);
    for (const int64_t n : {5, 70000, 3, 200000}) {
      check_sums<float>(*memory.tensor, *messages.tensor, n);
      check_sums<float>(*by_memory, *by_messages, n + 1);
    }
  }
  // Uneven parts: rank 0 alone.
  const int color = by_memory->rank() == 0;
  const auto memory = by_memory->split(color), messages = by_messages->split(color);
  check_sums<float>(*memory, *messages, 70001);
}

}  // namespace
}  // namespace lorashard

int main(int argc, char** argv) {
  using namespace lorashard;
  GTEST_FLAG_SET(brief, true);  // of each rank only what fails
  testing::InitGoogleTest(&argc, argv);
  expect_messages = argc > 1 && std::string_view(argv[1]) == "--expect-messages";
  MpiEnvironment environment(&argc, &argv);
  const auto memory = make_world_communicator(AllReducePath::SharedMemory);
  const auto messages = make_world_communicator(AllReducePath::Messages);
  by_memory = memory.get();
  by_messages = messages.get();
  const int failed = RUN_ALL_TESTS();
  int any = failed;
  MPI_Allreduce(&failed, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  return any;
}
