#include "trainer/run/full_files.h"

#include <algorithm>

#include "checkpoint/export.h"
#include "configs/error.h"
#include "kernels/elementwise.h"
#include "parallel/agree.h"

namespace lorashard {
namespace {

constexpr const char* kStepKey = "lorashard.step";  // in the header of RUN/model's files

std::vector<TensorSpec> specs_of(const FullWeights& weights) {
  std::vector<TensorSpec> specs;
  for (const WeightTensor& t : weights.layout().tensors) specs.push_back(t.spec);
  return specs;
}

const WeightTensor& find(const FullWeights& weights, const std::string& name) {
  const auto& tensors = weights.layout().tensors;
  return *std::find_if(tensors.begin(), tensors.end(),
                       [&](const WeightTensor& t) { return t.spec.name == name; });
}

// Collective: calls visit(first row, rows, buffer for them) for the blocks of a tensor.
template <class Visit>
void each_block(const TensorSpec& t, const Visit& visit) {
  const int64_t step = FullWeights::block_rows(t);
  std::vector<float> block(size_t(std::min(step, t.rows) * t.cols));
  for (int64_t row = 0; row < t.rows; row += step)
    visit(row, std::min(step, t.rows - row), block.data());
}

void stream_rows(const FullWeights& weights, const WeightTensor& t, WeightState state,
                 const EmitRows& emit) {
  each_block(t.spec, [&](int64_t row, int64_t rows, float* block) {
    weights.read_rows(t, state, row, rows, block);
    if (emit) emit(matrix(block, rows, t.spec.cols, DType::F32));
  });
}

// RUN/model holds the model after so many steps.
bool has_final_model(const fs::path& run_dir, int64_t step) {
  const fs::path dir = run_dir / "model";
  if (!fs::exists(dir / "config.json")) return false;
  for (const auto& entry : fs::directory_iterator(dir)) {
    if (entry.path().extension() != ".safetensors") continue;
    const SafetensorsFile file = SafetensorsFile::open(entry.path());
    const auto made = file.metadata().find(kStepKey);
    return made != file.metadata().end() && made->second == std::to_string(step);
  }
  return false;
}

}  // namespace

void load_base_weights(FullWeights& weights, const BaseModel& base) {
  Stream host(1);
  for (const WeightTensor& t : weights.layout().tensors) {
    each_block(t.spec, [&](int64_t row, int64_t rows, float* block) {
      if (row + rows <= t.held.row_begin || row >= t.held.row_end) return;
      const WeightSlice slice = base.slice(t.spec.name, {row, row + rows, 0, t.spec.cols});
      convert(host, matrix(block, rows, t.spec.cols, DType::F32), slice.matrix);
      weights.write_rows(t, WeightState::Value, row, rows, block);
    });
    base.release(t.spec.name);
  }
}

ResumedRun resume_weights(const fs::path& run_dir, FullWeights& weights, TrainingCounters& counters,
                          const Config& config, bool accept_changes, Communicator& host,
                          const std::function<void()>& ready) {
  ResumedRun resumed;
  std::optional<WeightStateFiles> files;
  on_first_rank(host, [&] {
    const std::vector<TensorSpec> specs = specs_of(weights);
    const auto newest = load_newest_weights_checkpoint(run_dir, specs);
    if (newest) {
      resumed.found = true;
      resumed.notes = newest->notes;
      resumed.steps = check_steps(*newest, counters, config);
      const int64_t step = newest->state.counters.step;
      resumed.finished = step == resumed.steps && has_final_model(run_dir, step);
      if (!resumed.finished) {
        continue_run(*newest, counters, config, accept_changes, resumed);
        files.emplace(newest->path, specs);
      }
    }
    if (!resumed.finished) ready();
  });
  share_counters(resumed, counters, host);
  if (!resumed.found || resumed.finished) return resumed;
  for (const WeightTensor& t : weights.layout().tensors) {
    for (const WeightState state : kWeightStates) {
      each_block(t.spec, [&](int64_t row, int64_t rows, float* block) {
        const int64_t count = rows * t.spec.cols;
        if (files) files->read(t.spec, state, row * t.spec.cols, count, block);
        host.broadcast(block, count * int64_t{sizeof(float)}, 0, "resume");
        weights.write_rows(t, state, row, rows, block);
      });
    }
  }
  return resumed;
}

std::vector<std::string> save_weights(const fs::path& run_dir, const FullWeights& weights,
                                      const TrainingCounters& counters, int64_t keep_last,
                                      bool first) {
  if (!first) {
    for (const WeightTensor& t : weights.layout().tensors) {
      for (const WeightState state : kWeightStates) stream_rows(weights, t, state, {});
    }
    return {};
  }
  const auto fill = [&](const fs::path& dir) {
    return write_weight_state(
        dir, specs_of(weights),
        [&](const TensorSpec& spec, WeightState state, const EmitFloats& emit) {
          stream_rows(weights, find(weights, spec.name), state, [&](ConstMatrix rows) {
            emit(static_cast<const float*>(rows.data), rows.rows * rows.cols);
          });
        });
  };
  return save_checkpoint(run_dir, counters, fill, keep_last);
}

void save_final_model(const fs::path& run_dir, const FullWeights& weights, const BaseModel& base,
                      std::optional<DType> dtype, int64_t step, bool first) {
  if (!first) {
    for (const BaseModel::Tensor& t : base.tensors())
      stream_rows(weights, find(weights, t.name), WeightState::Value, {});
    return;
  }
  const auto write = [&](const fs::path& dir) {
    write_model(base, dir, {.dtype = dtype, .progress = {}, .base_digest = {}},
                {{"format", "pt"}, {kStepKey, std::to_string(step)}},
                [&](const BaseModel::Tensor& t, const EmitRows& emit) {
                  stream_rows(weights, find(weights, t.name), WeightState::Value, emit);
                });
  };
  const fs::path dir = run_dir / "model";
  if (fs::is_directory(dir))
    replace_files(dir, write);
  else
    create_directory_atomic(dir, write);
}

}  // namespace lorashard
