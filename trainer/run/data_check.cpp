#include "trainer/run/data_check.h"

#include <fmt/format.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "checkpoint/base_digest.h"
#include "checkpoint/file_digest.h"
#include "configs/error.h"
#include "parallel/agree.h"

namespace lorashard {
namespace {

// What a user should know of the sequences of a file; `first_…`: of the first of them, -1 if there
// is none. As it is remembered: 192 bytes, six digests.
struct Findings {
  int64_t sequences = 0;
  int64_t truncated = 0, first_truncated = -1;    // cut to data.seq_len
  int64_t unlabelled = 0, first_unlabelled = -1;  // no unmasked token
  int64_t emptied = 0;                            // the unlabelled among the truncated
  int64_t spanning = 0;                           // a token is part of prompt and completion
  int64_t bos_twice = 0, first_bos_twice = -1;    // the text begins with what is put before it
  int64_t equal_pairs = 0;                        // that differ behind the cut only
  ColumnNames other_columns;                      // that no format reads

  void add(const Findings& other) {
    const auto first = [](int64_t& mine, int64_t theirs) {
      if (mine < 0 || (theirs >= 0 && theirs < mine)) mine = theirs;
    };
    sequences += other.sequences;
    truncated += other.truncated;
    unlabelled += other.unlabelled;
    emptied += other.emptied;
    spanning += other.spanning;
    bos_twice += other.bos_twice;
    equal_pairs += other.equal_pairs;
    other_columns.add(other.other_columns);
    first(first_truncated, other.first_truncated);
    first(first_unlabelled, other.first_unlabelled);
    first(first_bos_twice, other.first_bos_twice);
  }
};
constexpr size_t kDigests = 6;
static_assert(sizeof(Findings) == kDigests * sizeof(Digest));

Findings findings_of(const Example& example, int64_t i) {
  Findings f;
  f.sequences = 1;
  f.spanning = example.spans_border;
  f.equal_pairs = example.equal_pair;
  f.other_columns = example.other_columns;
  if (example.bos_twice) {
    f.bos_twice = 1;
    f.first_bos_twice = i;
  }
  if (example.truncated) {
    f.truncated = 1;
    f.first_truncated = i;
  }
  if (count_unmasked(example) == 0) {
    f.unlabelled = 1;
    f.first_unlabelled = i;
    f.emptied = example.truncated;
  }
  return f;
}

// Adds sequences [begin, end) to `sum`. Throws the error of the lowest bad one: chunks are given
// out in order, and those below the lowest known bad sequence are finished.
void scan(const Dataset& data, int64_t begin, int64_t end, int threads, Findings& sum) {
  constexpr int64_t kChunk = 16;
  std::atomic<int64_t> next = begin, bad = end;
  std::exception_ptr failure;
  std::mutex mutex;
  const auto work = [&] {
    Findings mine;
    for (int64_t chunk; (chunk = next.fetch_add(kChunk)) < end;) {
      for (int64_t i = chunk; i < std::min(chunk + kChunk, end) && i < bad; ++i) {
        try {
          mine.add(findings_of(data.get(i), i));
        } catch (...) {
          const std::lock_guard lock(mutex);
          if (i < bad) {
            bad = i;
            failure = std::current_exception();
          }
        }
      }
    }
    const std::lock_guard lock(mutex);
    sum.add(mine);
  };
  std::vector<std::thread> helpers;
  const int64_t useful = std::min<int64_t>(threads, (end - begin + kChunk - 1) / kChunk);
  for (int64_t t = 1; t < useful; ++t) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

// Reports how far a long check has come: by the bar on a terminal, else by a line now and then.
class CheckProgress {
 public:
  CheckProgress(Console& console, const std::string& path, int64_t total)
      : console_(console), path_(path), total_(total) {}
  void at(int64_t done) {
    console_.progress(done, total_, "sequences of " + path_ + " checked");
    const auto now = std::chrono::steady_clock::now();
    if (console_.terminal() || done == total_ || now - reported_ < std::chrono::seconds(5)) return;
    reported_ = now;
    console_.line(fmt::format("{}: {} of {} sequences checked", path_, done, total_));
  }

 private:
  Console& console_;
  const std::string& path_;
  const int64_t total_;
  std::chrono::steady_clock::time_point reported_ = std::chrono::steady_clock::now();
};

// Rounds of about 16 MiB of the file for each rank: an error ends the check of a large file after
// its round, and the ranks know of each other's progress.
Findings scan_on_all_ranks(const Dataset& data, const std::string& path, const Ranks& ranks,
                           int threads, Console& console) {
  constexpr double kRoundBytes = 16 << 20;
  Communicator& world = ranks.world;
  const int64_t n = data.size();
  const double rounds = double(data.identity().bytes) / (kRoundBytes * world.size());
  const int64_t per_round = std::max<int64_t>(1, int64_t(double(n) / std::max(1.0, rounds)));
  CheckProgress progress(console, path, n);
  Findings mine;
  for (int64_t first = 0; first < n; first += per_round) {
    const int64_t count = std::min(per_round, n - first);
    run_agreed(world, [&] {
      scan(data, first + count * world.rank() / world.size(),
           first + count * (world.rank() + 1) / world.size(), threads, mine);
    });
    progress.at(first + count);
  }
  std::vector<Findings> all(size_t(world.size()));
  world.all_gather(&mine, all.data(), sizeof mine, "data_check");
  Findings sum;
  for (const Findings& f : all) sum.add(f);
  return sum;
}

// Everything beside the file that decides what its sequences are.
std::string key_of(const RunConfig& run, const BaseModel& base) {
  RunConfig::Data settings = run.data();
  for (const auto clear : {&RunConfig::Data::clear_train, &RunConfig::Data::clear_eval,
                           &RunConfig::Data::clear_shuffle}) {
    (settings.*clear)();
  }
  std::string text;
  google::protobuf::TextFormat::PrintToString(settings, &text);
  const FileIdentity program = identify_file("/proc/self/exe");
  text += fmt::format("{} {} {} {}\n", base.config().vocab_size, program.bytes, program.inode,
                      program.modified_ns);
  if (!has_token_ids(run.data().format())) {
    // The tokenizer's files, without asking which of them it reads; none is large.
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(base.path())) {
      const std::string name = entry.path().filename().string();
      const bool read = name.ends_with(".json") || name.ends_with(".jinja");
      if (read && !name.ends_with(".index.json") && entry.is_regular_file()) {
        files.push_back(entry.path());
      }
    }
    std::sort(files.begin(), files.end());
    for (const fs::path& file : files) {
      text += file.filename().string() + " " + cached_file_digest(file) + "\n";
    }
  }
  return "data " + sha256_hex(text.data(), text.size());
}

// On every rank or on none.
std::optional<Findings> recall(const Dataset& data, const std::string& path,
                               const std::vector<std::string>& keys, Communicator& world) {
  const auto known = recall_digests(path, data.identity(), keys);
  char have = known.has_value();
  std::vector<char> all(size_t(world.size()));
  world.all_gather(&have, all.data(), sizeof have, "data_check");
  if (std::count(all.begin(), all.end(), 1) != world.size()) return std::nullopt;
  Findings found;
  std::memcpy(static_cast<void*>(&found), known->data(), sizeof found);
  world.broadcast(&found, sizeof found, 0, "data_check");
  if (found.sequences != data.size()) return std::nullopt;
  return found;
}

void remember(const Dataset& data, const std::string& path, const std::vector<std::string>& keys,
              const Findings& found) {
  std::vector<Digest> packed(kDigests);
  std::memcpy(packed.data(), &found, sizeof found);
  remember_digests(path, data.identity(), keys, packed);
}

std::vector<std::string> notes_of(const Dataset& data, const std::string& path, int64_t seq_len,
                                  const Findings& f) {
  std::vector<std::string> notes;
  if (f.truncated > 0) {
    notes.push_back(fmt::format("{}: {} of {} sequences were cut to data.seq_len {}; first: {}",
                                path, f.truncated, f.sequences, seq_len,
                                data.where(f.first_truncated)));
  }
  if (f.unlabelled > 0) {
    notes.push_back(fmt::format(
        "{}: {} of {} sequences have no label left ({} lost all to the cut to data.seq_len {}); "
        "first: {}",
        path, f.unlabelled, f.sequences, f.emptied, seq_len, data.where(f.first_unlabelled)));
  }
  if (f.equal_pairs > 0) {
    notes.push_back(fmt::format(
        "{}: {} of {} pairs are equal after the cut to data.seq_len {} and teach nothing", path,
        f.equal_pairs, f.sequences, seq_len));
  }
  if (f.spanning > 0 && is_preference(data.options().format)) {
    notes.push_back(
        fmt::format("{}: in {} of {} pairs the prompt's last tokens are others when a completion "
                    "follows; they count to the completion",
                    path, f.spanning, f.sequences));
  } else if (f.spanning > 0) {
    notes.push_back(
        fmt::format("{}: in {} of {} sequences a token is part of both prompt and completion; it "
                    "counts to the prompt",
                    path, f.spanning, f.sequences));
  }
  if (f.bos_twice > 0) {
    notes.push_back(fmt::format(
        "{}: {} of {} texts begin with the token that the tokenizer puts before every text (BOS), "
        "and have it twice; data.add_bos: false adds none; first: {}",
        path, f.bos_twice, f.sequences, data.where(f.first_bos_twice)));
  }
  const DatasetOptions& options = data.options();
  notes.insert(notes.begin(), options.notes.begin(), options.notes.end());
  if (options.append_eos && !options.eos_id && !has_token_ids(options.format)) {
    notes.push_back(path +
                    ": data.append_eos appends nothing, since the tokenizer names no "
                    "eos_token (tokenizer_config.json)");
  }
  if (!f.other_columns.empty()) {
    notes.push_back(fmt::format("{}: columns that are not read: {}", path, f.other_columns.text()));
  }
  return notes;
}

}  // namespace

std::vector<std::string> check_data(const Dataset& data, const std::string& path,
                                    const RunConfig& run, const BaseModel& base, const Ranks& ranks,
                                    int threads, Console& console) {
  std::vector<std::string> keys;
  run_agreed(ranks.world, [&] {
    const std::string key = key_of(run, base);
    for (size_t k = 1; k <= kDigests; ++k) keys.push_back(fmt::format("{} {}", key, k));
  });
  std::optional<Findings> found = recall(data, path, keys, ranks.world);
  const bool known = found.has_value();
  std::vector<std::string> notes;
  if (!known) found = scan_on_all_ranks(data, path, ranks, threads, console);
  run_agreed(ranks.world, [&] {
    if (!(identify_file(path) == data.identity())) {
      fail_input(path, "was changed while it was read; start again when it is complete");
    }
    if (!known && ranks.host_rank == 0) remember(data, path, keys, *found);
    if (found->unlabelled == found->sequences) {
      fail_input(path, fmt::format("none of its {} sequences has a label left ({} lost all to the "
                                   "cut to data.seq_len {}); at least one label must differ from "
                                   "-100 and have a token before it",
                                   found->sequences, found->emptied, run.data().seq_len()));
    }
    if (console.enabled()) notes = notes_of(data, path, run.data().seq_len(), *found);
  });
  return notes;
}

}  // namespace lorashard
