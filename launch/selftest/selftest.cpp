#include "launch/selftest/selftest.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "configs/error.h"
#include "kernels/attention.h"
#include "launch/selftest/kernel_checks.h"
#include "launch/selftest/operand.h"
#include "launch/selftest/timings.h"
#include "trainer/run/console.h"

namespace lorashard {
namespace {

using namespace selftest;

class Report {
 public:
  Report(const Ranks& ranks, Console& console) : ranks_(ranks), console_(console) {}

  // `error` runs on every rank, and may throw an Error, which fails the check. Collective.
  void check(Check c, const std::function<double()>& error) {
    try {
      c.error = error();
    } catch (const Error& e) {
      c.failure = e.what();
      c.error = std::numeric_limits<double>::infinity();
    }
    std::vector<double> all(size_t(ranks_.world.size()));
    ranks_.world.all_gather(&c.error, all.data(), sizeof c.error, "selftest");
    for (size_t r = 0; r < all.size(); ++r) {
      const bool worse = !(all[r] <= c.error);  // a NaN too
      if (worse) c.error = all[r];
      if (worse && !(all[r] <= c.tolerance)) c.failure = fmt::format("on rank {}", r);
    }
    report(c);
  }
  void skip(Check c, const std::string& why) {
    c.skipped = why;
    report(c);
  }
  int end() {
    console_.line(tally_.line());
    return tally_.failed == 0 ? 0 : kExitFailure;
  }

 private:
  void report(const Check& c) {
    tally_.count(c);
    console_.line(c.line());
  }
  const Ranks& ranks_;
  Console& console_;
  Tally tally_;
};

Check check_of(const KernelCheck& k, const char* backend) {
  return {k.name, backend, std::string(name_of(k.type)), 0, k.tolerance, "", ""};
}

double worst(const std::vector<Part>& parts) {
  double error = parts.empty() ? std::numeric_limits<double>::infinity() : 0;
  for (const Part& p : parts) error = std::max(error, largest_error(p.got, p.want));
  return error;
}

// The device's results against the CPU's; both may be off by the tolerance.
double difference(const std::vector<Part>& device, const std::vector<Part>& cpu) {
  if (device.size() != cpu.size()) return std::numeric_limits<double>::infinity();
  double error = 0;
  for (size_t i = 0; i < cpu.size(); ++i)
    error = std::max(error, largest_error(device[i].got, cpu[i].got));
  return error;
}

// Every rank adds small whole numbers, which no type rounds.
double all_reduce_error(Communicator& world, Stream& stream, DType type) {
  constexpr int64_t kCount = 1003;
  Operand x(stream, 1, kCount, type, 1);
  x.fill([&](int64_t, int64_t j) { return double(j % 8 + world.rank()); });
  world.all_reduce_sum(stream, x, "selftest");
  const int n = world.size();
  const Part part =
      x.against([&](int64_t, int64_t j) { return double(j % 8) * n + double(n) * (n - 1) / 2; });
  return largest_error(part.got, part.want);
}

void check_all_reduce(Report& report, const Ranks& ranks, Communicator& world, Stream& stream,
                      const char* backend) {
  for (const DType type : {DType::F32, DType::BF16}) {
    // bf16 holds whole numbers to 256: with more ranks than fit, a sum is rounded.
    Check c{"sum over the ranks",
            backend,
            std::string(name_of(type)),
            0,
            type == DType::BF16 ? 0x1p-7 : 1e-6,
            "",
            ""};
    if (ranks.world.size() == 1) {
      report.skip(c, "one rank alone; start it with mpirun -n N");
    } else {
      report.check(c, [&] { return all_reduce_error(world, stream, type); });
    }
  }
}

AttentionShape typical_attention() {
  AttentionShape shape;
  shape.heads = 32;
  shape.kv_heads = 8;
  shape.head_dim = 128;
  shape.group = 4;
  shape.scale = 0.088388f;
  return shape;
}

}  // namespace

int self_test(const Ranks& ranks) {
  Console console(ranks.world.rank() == 0);
  Report report(ranks, console);
  const std::vector<KernelCheck> checks = kernel_checks();
  Stream cpu(choose_threads(0, ranks.host_ranks));
  console.line("CPU: each kernel against its definition in double precision");
  for (const KernelCheck& k : checks)
    report.check(check_of(k, "CPU"), [&] { return worst(k.run(cpu)); });
  check_all_reduce(report, ranks, ranks.world, cpu, "CPU");

  const DeviceChoice choice = choose_device(RunConfig::Compute::Backend::AUTO, "selftest", ranks);
  if (choice.backend == Backend::CPU) {
    const std::string& why = choice.no_cuda;
    console.line("CUDA: each kernel against the CPU's result");
    for (const KernelCheck& k : checks) report.skip(check_of(k, "CUDA"), why);
    for (const DType type : {DType::F32, DType::BF16})
      report.skip({"sum over the ranks (NCCL)", "CUDA", std::string(name_of(type)), 0, 0, "", ""},
                  why);
    report.skip({"timings", "CUDA", "BF16", 0, 0, "", ""}, why);
    return report.end();
  }
  Compute compute(ranks, choice, 1);
  Stream& device = compute.stream();
  console.line(std::string("CUDA") + (cuda_is_simulated() ? " (simulated devices)" : "") +
               ": each kernel against the CPU's result");
  for (const KernelCheck& k : checks) {
    Check c = check_of(k, "CUDA");
    c.tolerance *= 2;  // both round
    report.check(c, [&] { return difference(k.run(device), k.run(cpu)); });
  }
  check_all_reduce(report, ranks, compute.world(), device, "CUDA");
  if (cuda_is_simulated()) {
    report.skip({"timings", "CUDA", "BF16", 0, 0, "", ""},
                "the devices are simulated: their time says nothing");
  } else {
    console.line(attention_choice(device, DType::BF16, typical_attention(), 1, 4096));
    const std::string name = cuda_device_name(choice.device);
    const Machine* const peak = data_sheet(name);
    console.line(peak ? "timings of " + name + ", beside the data sheet of " + peak->name
                      : "timings of " + name + ", of which there is no data sheet here");
    for (const std::string& line : timings(device, typical_attention(), peak)) console.line(line);
  }
  return report.end();
}

}  // namespace lorashard
