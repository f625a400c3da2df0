// What PEFT trains of embedding and head themselves: modules_to_save and trainable_token_indices
// (peft/utils/other.py, set_additional_trainable_modules).
#include <algorithm>
#include <set>

#include "checkpoint/adapter.h"
#include "configs/error.h"

namespace lorashard {
namespace {

const std::string kWeight = ".weight";

// The two modules of the vocabulary. A tied model's tensors have no head.
struct Ends {
  TensorSpec embedding, head;
  bool tied = true;
};
Ends ends_of(const std::vector<TensorSpec>& tensors) {
  Ends ends;
  for (const TensorSpec& t : tensors) {
    if (t.name == "lm_head" + kWeight) {
      ends.head = t;
      ends.tied = false;
    } else if (t.split == Split::VocabRows) {
      ends.embedding = t;
    }
  }
  if (ends.tied) {
    ends.head = ends.embedding;
    ends.head.name = "lm_head" + kWeight;
  }
  return ends;
}

std::string module_of(const TensorSpec& t) { return t.name.substr(0, t.name.rfind('.')); }

// What the settings ask for.
struct Saved {
  bool embedding = false, head = false;  // whole weights
  // Rows of them; of a tied model the embedding's stand for the head too, unless it has its own.
  const std::vector<int64_t>*embedding_rows = nullptr, *head_rows = nullptr;
  bool rows_tied = false;
};
Saved saved_of(const Ends& ends, const AdapterConfig& config) {
  Saved saved;
  for (const std::string& name : config.modules_to_save) {
    saved.embedding = saved.embedding || module_of(ends.embedding).ends_with(name);
    saved.head = saved.head || module_of(ends.head).ends_with(name);
  }
  for (const auto& [name, ids] : config.trainable_token_indices) {
    if (module_of(ends.embedding).ends_with(name)) saved.embedding_rows = &ids;
    if (!name.empty() && module_of(ends.head).ends_with(name)) saved.head_rows = &ids;
  }
  if (ends.tied && saved.embedding_rows &&
      (!saved.head_rows || *saved.head_rows == *saved.embedding_rows)) {
    saved.rows_tied = true;
    saved.head_rows = nullptr;
  }
  return saved;
}

std::string quoted(const std::string& name) { return "\"" + name + "\""; }

}  // namespace

void check_saved_modules(const std::vector<TensorSpec>& tensors, const AdapterConfig& config,
                         const std::vector<LinearModule>& adapted,
                         const std::function<std::string(const char* setting)>& where) {
  const Ends ends = ends_of(tensors);
  const std::string embedding = module_of(ends.embedding), head = module_of(ends.head);
  const auto fail = [&](const char* setting, const std::string& what) {
    fail_input(where(setting), setting + (" " + what));
  };
  for (const std::string& name : config.modules_to_save) {
    std::string other;  // a module of this name that is neither
    bool matches = embedding.ends_with(name) || head.ends_with(name);
    for (const TensorSpec& t : tensors) {
      std::string module = module_of(t);
      for (; !module.empty() && other.empty();
           module.resize(module.rfind('.') == std::string::npos ? 0 : module.rfind('.')))
        if (module != embedding && module != head && module.ends_with(name)) other = module;
    }
    if (!other.empty())
      fail("modules_to_save", "has " + quoted(name) + ", which names " + other +
                                  ", a module that is not trained as a whole here; " + embedding +
                                  " and " + head + " can be");
    if (!matches)
      fail("modules_to_save", "has " + quoted(name) + ", which is no module of the model; " +
                                  embedding + " and " + head + " can be trained as a whole");
  }
  std::set<std::string> with_factors;
  for (const LinearModule& m : adapted) with_factors.insert(m.name);
  const Saved saved = saved_of(ends, config);
  for (const auto& [module, whole] :
       {std::pair{embedding, saved.embedding}, std::pair{head, saved.head}}) {
    if (whole && with_factors.count(module))
      fail("modules_to_save",
           "names " + module + ", which target_modules adapts too; keep it in one of the two");
  }
  std::set<std::string> seen;
  for (const auto& [name, ids] : config.trainable_token_indices) {
    const bool of_embedding = embedding.ends_with(name);
    const std::string& module = of_embedding ? embedding : head;
    if (!of_embedding && !head.ends_with(name))
      fail("trainable_token_indices", "has the key " + quoted(name) + "; rows of " + embedding +
                                          " and " + head + " can be trained");
    if (!seen.insert(module).second)
      fail("trainable_token_indices", "names " + module + " twice; give it one list of ids");
    if (ids.empty())
      fail("trainable_token_indices", "has no id for " + module + "; give one at least");
    std::set<int64_t> once;
    for (const int64_t id : ids) {
      if (id < 0 || (ends.embedding.rows > 0 && id >= ends.embedding.rows))
        fail("trainable_token_indices", "has the id " + std::to_string(id) +
                                            "; the vocabulary has 0 to " +
                                            std::to_string(ends.embedding.rows - 1));
      if (!once.insert(id).second)
        fail("trainable_token_indices", "has the id " + std::to_string(id) + " twice");
    }
    const auto refuse_second = [&](const std::string& of, bool whole) {
      const char* also = whole                    ? "modules_to_save trains as a whole"
                         : with_factors.count(of) ? "target_modules adapts"
                                                  : nullptr;
      if (also)
        fail("trainable_token_indices",
             "trains rows of " + of + ", which " + also + " too; keep it in one of the two");
    };
    refuse_second(module, of_embedding ? saved.embedding : saved.head);
    if (of_embedding && saved.rows_tied) refuse_second(head, saved.head);
  }
  if (!config.ensure_weight_tying || !ends.tied) return;
  if (saved.embedding_rows && saved.head_rows)
    fail("ensure_weight_tying", "is true, and trainable_token_indices has other ids for " + head +
                                    " than for " + embedding + "; give both the same");
  if (with_factors.count(embedding) || with_factors.count(head))
    fail("ensure_weight_tying", "is true, and target_modules adapts " +
                                    (with_factors.count(head) ? head : embedding) +
                                    ": factors that the two share are not supported; leave it out");
}

std::vector<TrainedTensor> saved_tensors(const std::vector<TensorSpec>& tensors,
                                         const AdapterConfig& config) {
  if (config.modules_to_save.empty() && config.trainable_token_indices.empty()) return {};
  const Ends ends = ends_of(tensors);
  Saved saved = saved_of(ends, config);
  std::vector<TrainedTensor> trained;
  const bool one = ends.tied && config.ensure_weight_tying && (saved.embedding || saved.head);
  if (one || saved.embedding)
    trained.push_back({.base = ends.embedding,
                       .file_name = ends.embedding.name,
                       .tied = one,
                       .second_name = one ? ends.head.name : ""});
  if (saved.head && !one) trained.push_back({.base = ends.head, .file_name = ends.head.name});
  const auto add_rows = [&](const TensorSpec& of, const std::vector<int64_t>* ids, bool tied) {
    if (!ids) return;
    TensorSpec rows = of;
    rows.rows = int64_t(ids->size());
    rows.split = Split::None;
    trained.push_back({.base = rows,
                       .file_name = module_of(of) + ".token_adapter.trainable_tokens_delta",
                       .rows = *ids,
                       .tied = tied});
  };
  add_rows(ends.embedding, saved.embedding_rows, saved.rows_tied);
  add_rows(ends.head, saved.head_rows, false);
  return trained;
}

}  // namespace lorashard
