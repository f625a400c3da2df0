#include "trainer/run/evaluate.h"

#include <fmt/format.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <optional>

#include "checkpoint/adapter_base.h"
#include "configs/error.h"
#include "parallel/agree.h"
#include "trainer/run/agreed_inputs.h"
#include "trainer/run/data_check.h"
#include "trainer/run/run_folder.h"
#include "trainer/run/run_options.h"
#include "trainer/run/session.h"
#include "trainer/run/stop.h"
#include "trainer/run/train.h"

namespace lorashard {

EvalSum evaluate_loss(Model& model, std::shared_ptr<const Dataset> data, const std::string& path,
                      int64_t micro_batch, const Mesh& mesh,
                      const std::function<int()>& stop_signal) {
  const EvalBatches batches(data, micro_batch, mesh.dp_rank, mesh.dp_size);
  // Ranks whose group left by SIGINT, by SIGTERM; unmasked tokens; the totals.
  constexpr int64_t kCounts = 3;
  double sums[kCounts + kLossTotals] = {};
  for (int64_t m = 0; m < batches.micro_batches(); ++m) {
    if (stop_signal) {
      const int signal = stop_signal_of_group(mesh, stop_signal);
      sums[0] = signal == SIGINT;
      sums[1] = signal == SIGTERM;
      if (signal != 0) break;
    }
    const MicroBatch batch = batches.micro_batch(m);
    const LossTotals totals = model.evaluate(batch);
    if (mesh.tp_rank != 0) continue;  // counted once in a tensor-parallel group
    double more[kLossTotals];
    std::memcpy(more, &totals, sizeof more);
    for (int64_t i = 0; i < kLossTotals; ++i) sums[kCounts + i] += more[i];
    sums[2] += double(batch.unmasked);
  }
  Stream host(1);  // for an all-reduce of host memory
  mesh.world->all_reduce_sum(host, matrix(sums, 1, kCounts + kLossTotals, DType::F64), "eval_loss");
  if (sums[0] + sums[1] > 0) return {.stop_signal = sums[1] > 0 ? SIGTERM : SIGINT};
  if (sums[2] == 0) {
    fail_on_all_ranks(kExitInput, path,
                      "no label counts; at least one must differ from -100 and have a "
                      "token before it");
  }
  EvalSum sum{.unmasked = int64_t(sums[2]), .sequences = data->size()};
  std::memcpy(static_cast<void*>(&sum.totals), sums + kCounts, sizeof sum.totals);
  sum.terms = is_preference(data->options().format) ? sum.sequences : sum.unmasked;
  return sum;
}

int evaluate(const Config& config, const std::string& adapter_dir, const Ranks& ranks) {
  const RunConfig& run = config.run;
  Session session(ranks, session_options(config, {{"--adapter", adapter_dir, "--adapter"}}));
  Console& console = session.console;
  std::shared_ptr<const Dataset> data;
  std::optional<Adapter> adapter;
  run_agreed(session.world, [&] {
    check_tensor_groups(config, ranks.world.size());
    session.open_base(run.model().path(), run.parallel().tensor(), config.where("parallel.tensor"));
    session.check_positions(run.data().seq_len(), config.where("data.seq_len"), "data.seq_len");
    data = Dataset::open(run.data().eval(), dataset_options(run, *session.base));
    if (!adapter_dir.empty()) adapter = read_adapter(adapter_dir, session.base->config());
  });
  agree_on_inputs(ranks, eval_files(run, adapter_dir));
  const std::vector<std::string> notes = check_data(*data, run.data().eval(), run, *session.base,
                                                    ranks, session.stream.threads(), console);
  session.digest_base();
  session.form_mesh(run.parallel().tensor());
  std::optional<Factors> factors;
  run_agreed(session.world, [&] {
    if (!adapter) return;
    check_adapter_base(*adapter, adapter_dir, session.base_digest);
    check_base_copies(adapter_dir, *session.base);
    factors.emplace(factors_of(session.stream, session.base->config(), *adapter, session.mesh));
  });
  const auto loaded =
      load_model(session, factors ? &*factors : nullptr, nullptr, eval_options(run));
  report_notes(console, session.base->notes());
  if (adapter) report_notes(console, adapter_base_notes(*adapter, adapter_dir, *session.base));
  const EvalSum sum = evaluate_loss(loaded->model, data, run.data().eval(),
                                    run.train().micro_batch_size(), session.mesh);
  if (is_preference(run.data().format())) {
    console.line(fmt::format("loss {:.6f}{} tokens {} pairs {}", sum.mean(),
                             format_pairs(mean_of(sum.totals.pairs, sum.terms)), sum.unmasked,
                             sum.sequences));
  } else {
    console.line(fmt::format("loss {:.6f} perplexity {:.4f} tokens {} sequences {}", sum.mean(),
                             std::exp(sum.mean()), sum.unmasked, sum.sequences));
  }
  console.notes(notes);
  return 0;
}

}  // namespace lorashard
