#include "parallel/threads.h"

#include <condition_variable>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "kernels/float_types.h"

namespace lorashard {
namespace {

// What the ranks of one communicator share: a reusable barrier and a slot for each rank's pointer.
struct Group {
  explicit Group(int n) : size(n), slots(size_t(n)), numbers(size_t(n)) {}
  const int size;
  std::mutex mutex;
  std::condition_variable wake;
  int waiting = 0;
  uint64_t generation = 0;
  bool broken = false;
  std::vector<const void*> slots;
  std::vector<int64_t> numbers;
  std::map<int, std::shared_ptr<Group>> children;  // by color, during split
  std::vector<std::weak_ptr<Group>> all_children;

  void wait() {
    std::unique_lock lock(mutex);
    if (broken) throw std::runtime_error("another rank failed");
    const uint64_t mine = generation;
    if (++waiting == size) {
      waiting = 0;
      ++generation;
      wake.notify_all();
      return;
    }
    wake.wait(lock, [&] { return generation != mine || broken; });
    if (generation == mine) throw std::runtime_error("another rank failed");
  }

  void fail() {
    std::lock_guard lock(mutex);
    broken = true;
    wake.notify_all();
    for (auto& child : all_children) {
      if (auto group = child.lock()) group->fail();
    }
  }
};

// Adds the ranks' arrays in rank order; every rank computes the same values.
template <class T, class Load, class Store>
std::vector<T> sum_slots(const Group& group, int64_t n, Load load, Store store) {
  std::vector<T> sum(size_t(n), T{});
  for (int64_t i = 0; i < n; ++i) {
    auto total = load(static_cast<const T*>(group.slots[0])[i]);
    for (int r = 1; r < group.size; ++r) {
      total += load(static_cast<const T*>(group.slots[size_t(r)])[i]);
    }
    sum[size_t(i)] = store(total);
  }
  return sum;
}

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(int rank, std::shared_ptr<Group> group)
      : Communicator(rank, group->size), group_(std::move(group)) {}

  std::unique_ptr<Communicator> split(int color) override {
    group_->numbers[size_t(rank())] = color;
    group_->wait();
    int new_rank = 0, new_size = 0;
    for (int r = 0; r < size(); ++r) {
      if (group_->numbers[size_t(r)] != color) continue;
      if (r < rank()) ++new_rank;
      ++new_size;
    }
    std::shared_ptr<Group> child;
    {
      std::lock_guard lock(group_->mutex);
      auto& slot = group_->children[color];
      if (!slot) {
        slot = std::make_shared<Group>(new_size);
        group_->all_children.push_back(slot);
      }
      child = slot;
    }
    group_->wait();
    if (rank() == 0) group_->children.clear();
    group_->wait();
    return std::make_unique<ThreadCommunicator>(new_rank, std::move(child));
  }

  [[noreturn]] void abort(int exit_status) override {
    group_->fail();
    throw std::runtime_error("abort with status " + std::to_string(exit_status));
  }

 private:
  void do_all_reduce_sum(Stream&, Matrix x) override {
    group_->slots[size_t(rank())] = x.data;
    group_->wait();
    const int64_t n = x.rows * x.cols;
    const auto finish = [&](const auto& sum) {
      group_->wait();  // everyone has read the parts
      std::memcpy(x.data, sum.data(), size_t(n * size_of(x.dtype)));
      group_->wait();
    };
    const auto same = [](auto v) { return v; };
    switch (x.dtype) {
      case DType::F32:
        finish(sum_slots<float>(*group_, n, same, same));
        break;
      case DType::F64:
        finish(sum_slots<double>(*group_, n, same, same));
        break;
      case DType::I64:
        finish(sum_slots<int64_t>(*group_, n, same, same));
        break;
      case DType::BF16:
        finish(sum_slots<uint16_t>(
            *group_, n, [](uint16_t v) { return bf16_to_float(v); },
            [](float v) { return float_to_bf16(v); }));
        break;
      default:
        throw std::logic_error("all_reduce_sum: unsupported type");
    }
  }
  void do_all_gather(const void* send, void* receive, int64_t bytes) override {
    group_->slots[size_t(rank())] = send;
    group_->wait();
    for (int r = 0; r < size(); ++r) {
      std::memcpy(static_cast<char*>(receive) + r * bytes, group_->slots[size_t(r)], size_t(bytes));
    }
    group_->wait();
  }
  void do_broadcast(void* data, int64_t bytes, int root) override {
    group_->slots[size_t(rank())] = data;
    group_->wait();
    if (rank() != root) std::memcpy(data, group_->slots[size_t(root)], size_t(bytes));
    group_->wait();
  }
  void do_barrier() override { group_->wait(); }

  std::shared_ptr<Group> group_;
};

}  // namespace

void run_thread_ranks(int ranks, const std::function<void(Communicator&)>& body) {
  auto group = std::make_shared<Group>(ranks);
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      try {
        ThreadCommunicator communicator(r, group);
        body(communicator);
      } catch (...) {
        {
          std::lock_guard lock(mutex);
          if (!first) first = std::current_exception();
        }
        group->fail();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace lorashard
