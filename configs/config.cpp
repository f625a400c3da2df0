#include "configs/config.h"

#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "configs/config_text.h"
#include "configs/error.h"

namespace lorashard {
namespace {

namespace pb = google::protobuf;

// Far above any real configuration; keeps a data file given by mistake out of the parser.
constexpr size_t kMaxConfigBytes = 1 << 20;
constexpr int64_t kMaxCount = int64_t{1} << 40;  // keeps products of counts inside int64

std::string read_config_file(const std::string& path) {
  std::error_code code;
  if (std::filesystem::is_directory(path, code))
    fail_input(path, "is a folder, expected a run configuration file");
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  if (!in)
    fail_input(path, std::string("cannot be read (") + std::strerror(errno) +
                         "), expected a run configuration file");
  std::string text(kMaxConfigBytes + 1, '\0');
  in.read(text.data(), text.size());
  if (in.bad()) fail_input(path, std::string("cannot be read (") + std::strerror(errno) + ")");
  text.resize(in.gcount());
  if (text.size() > kMaxConfigBytes)
    fail_input(path, "has more than 1 MiB, expected a run configuration");
  return text;
}

// Collects what is wrong with the values of a configuration.
class Checker {
 public:
  explicit Checker(const Config& config) : config_(config) {}

  void problem(const std::string& path, const std::string& what) {
    problems_.push_back(config_.where(path) + ": " + path + " " + what);
  }
  void integer(const std::string& path, int64_t value, int64_t low, int64_t high = kMaxCount) {
    if (value < low)
      problem(path, "is " + std::to_string(value) + ", expected at least " + std::to_string(low));
    if (value > high)
      problem(path, "is " + std::to_string(value) + ", expected at most " + std::to_string(high));
  }
  void real(const std::string& path, double value, bool holds, const std::string& expected) {
    if (!std::isfinite(value) || !holds)
      problem(path, "is " + pb::SimpleDtoa(value) + ", expected " + expected);
  }
  void present(const std::string& path, const std::string& value, const std::string& expected) {
    if (value.empty()) problem(path, "is not set, expected " + expected);
  }
  void unsupported(const std::string& path, bool asked, const std::string& setting) {
    if (asked) problem(path, "is " + setting + ", which this version does not support");
  }
  const std::vector<std::string>& problems() const { return problems_; }

 private:
  const Config& config_;
  std::vector<std::string> problems_;
};

constexpr const char* kRegexCharacters = "*+?()[]{}|^$\\";

// In a list of several every entry is a name: what can be none would be ignored.
void check_module_list(Checker& c, const std::string& setting,
                       const pb::RepeatedPtrField<std::string>& modules) {
  for (int i = 0; i < modules.size(); ++i) {
    const std::string path = setting + "[" + std::to_string(i) + "]";
    c.present(path, modules[i], "a module name");
    if (modules.size() == 1) continue;
    if (modules[i].find_first_of(kRegexCharacters) != std::string::npos)
      c.problem(path, "is \"" + modules[i] +
                          "\", which is no module's name; a regular expression stands alone, such "
                          "as \".*\\\\.(q|v)_proj\"");
    if (modules[i] == "all-linear")
      c.problem(path, "is \"all-linear\", which stands alone and not beside names");
  }
}

void check(const Config& config, ConfigUse use) {
  const RunConfig& run = config.run;
  Checker c(config);

  c.present("model.path", run.model().path(), "the folder of a model");
  if (use == ConfigUse::Train) {
    c.present("data.train", run.data().train(), "a JSONL file");
    c.present("output.dir", run.output().dir(), "the folder of the run");
  }
  if (use == ConfigUse::Eval) c.present("data.eval", run.data().eval(), "a JSONL file");

  // What the schema has and this version has not.
  c.unsupported("data.format", run.data().format() == RunConfig::Data::CHAT, "CHAT");
  c.unsupported("data.packing", run.data().packing(), "true");
  c.unsupported("lora.use_dora", run.lora().use_dora(), "true");
  c.unsupported("train.method", run.train().method() == RunConfig::Train::FULL, "FULL");
  c.unsupported("parallel.sequence", run.parallel().sequence(), "true");
  c.unsupported("parallel.reproducible", run.parallel().reproducible(), "true");

  c.integer("data.seq_len", run.data().seq_len(), 2, 1 << 20);

  const auto& lora = run.lora();
  const char* positive = "a finite number above 0";
  c.integer("lora.rank", lora.rank(), 1, 65536);
  c.real("lora.alpha", lora.alpha(), lora.alpha() > 0, positive);
  c.real("lora.dropout", lora.dropout(), lora.dropout() >= 0 && lora.dropout() < 1,
         "at least 0 and below 1");
  for (const auto& p : lora.rank_pattern())
    c.integer("lora.rank_pattern." + p.key(), p.value(), 1, 65536);
  for (const auto& p : lora.alpha_pattern())
    c.real("lora.alpha_pattern." + p.key(), p.value(), p.value() > 0, positive);
  check_module_list(c, "lora.target_modules", lora.target_modules());
  check_module_list(c, "lora.exclude_modules", lora.exclude_modules());

  const auto& opt = run.optimizer();
  const char* not_negative = "a finite number, at least 0";
  const char* decay = "at least 0 and below 1";
  c.real("optimizer.learning_rate", opt.learning_rate(), opt.learning_rate() >= 0, not_negative);
  c.real("optimizer.weight_decay", opt.weight_decay(), opt.weight_decay() >= 0, not_negative);
  c.real("optimizer.beta1", opt.beta1(), opt.beta1() >= 0 && opt.beta1() < 1, decay);
  c.real("optimizer.beta2", opt.beta2(), opt.beta2() >= 0 && opt.beta2() < 1, decay);
  c.real("optimizer.epsilon", opt.epsilon(), opt.epsilon() > 0, positive);
  c.real("optimizer.max_grad_norm", opt.max_grad_norm(), opt.max_grad_norm() >= 0, not_negative);
  c.integer("schedule.warmup_steps", run.schedule().warmup_steps(), 0);

  const auto& train = run.train();
  c.integer("train.steps", train.steps(), 1);
  c.integer("train.global_batch_size", train.global_batch_size(), 1, 1 << 30);
  c.integer("train.micro_batch_size", train.micro_batch_size(), 1, 1 << 20);
  if (train.micro_batch_size() >= 1 && train.global_batch_size() >= 1 &&
      train.global_batch_size() % train.micro_batch_size() != 0)
    c.problem("train.global_batch_size",
              "is " + std::to_string(train.global_batch_size()) +
                  ", expected a multiple of train.micro_batch_size, which is " +
                  std::to_string(train.micro_batch_size()));
  if (train.micro_batch_size() > (int64_t{1} << 30) / std::max<int64_t>(1, run.data().seq_len()))
    c.problem("train.micro_batch_size", "is " + std::to_string(train.micro_batch_size()) +
                                            ", expected at most 2^30 tokens in micro_batch_size x "
                                            "data.seq_len");
  c.integer("train.eval_every", train.eval_every(), 0);
  c.integer("train.replica_check_every", train.replica_check_every(), 0);
  c.integer("train.log_every", train.log_every(), 1);
  c.integer("parallel.tensor", run.parallel().tensor(), 1, 1 << 20);
  c.integer("parallel.timeout_s", run.parallel().timeout_s(), 0, 1 << 24);
  c.integer("checkpoint.every", run.checkpoint().every(), 0);
  c.integer("checkpoint.keep_last", run.checkpoint().keep_last(), 0);
  c.integer("compute.threads", run.compute().threads(), 0, 4096);
  throw_problems(c.problems());
}

// Marks every setting as present with its default where it is not set.
void fill_defaults(pb::Message& message) {
  const pb::Reflection& r = *message.GetReflection();
  const pb::Descriptor& d = *message.GetDescriptor();
  for (int i = 0; i < d.field_count(); ++i) {
    const pb::FieldDescriptor* f = d.field(i);
    if (f->is_repeated()) continue;
    if (f->message_type()) {
      fill_defaults(*r.MutableMessage(&message, f));
      continue;
    }
    if (r.HasField(message, f)) continue;
    switch (f->cpp_type()) {
      case pb::FieldDescriptor::CPPTYPE_BOOL:
        r.SetBool(&message, f, f->default_value_bool());
        break;
      case pb::FieldDescriptor::CPPTYPE_INT64:
        r.SetInt64(&message, f, f->default_value_int64());
        break;
      case pb::FieldDescriptor::CPPTYPE_UINT64:
        r.SetUInt64(&message, f, f->default_value_uint64());
        break;
      case pb::FieldDescriptor::CPPTYPE_DOUBLE:
        r.SetDouble(&message, f, f->default_value_double());
        break;
      case pb::FieldDescriptor::CPPTYPE_ENUM:
        r.SetEnum(&message, f, f->default_value_enum());
        break;
      default:
        r.SetString(&message, f, f->default_value_string());
    }
  }
}

}  // namespace

std::string Config::where(const std::string& path) const {
  for (std::string at = path; !at.empty();) {
    if (const auto found = locations.find(at); found != locations.end()) return found->second;
    const size_t cut = at.find_last_of(".[");
    at.resize(cut == std::string::npos ? 0 : cut);
  }
  return file + ":1:1";
}

Config load_config(const std::string& path, const std::vector<std::string>& overrides,
                   ConfigUse use) {
  Config config;
  config.file = path;
  parse_config_text(read_config_file(path), config);
  apply_overrides(overrides, config);
  auto& lora = *config.run.mutable_lora();
  if (lora.target_modules().empty() && lora.target_parameters().empty() &&
      lora.init_from().empty()) {
    lora.add_target_modules("q_proj");
    lora.add_target_modules("v_proj");
  }
  fill_defaults(config.run);
  check(config, use);
  return config;
}

void check_tensor_groups(const Config& config, int64_t world_size) {
  const int64_t tensor = config.run.parallel().tensor();
  if (world_size % tensor != 0) {
    std::string divisors;
    for (int64_t d = 1; d <= world_size; ++d)
      if (world_size % d == 0) divisors += (divisors.empty() ? "" : ", ") + std::to_string(d);
    fail_input(config.where("parallel.tensor"),
               "parallel.tensor is " + std::to_string(tensor) + " and there are " +
                   std::to_string(world_size) + " ranks, expected a divisor of the rank count (" +
                   divisors + ") or mpirun -n with a multiple of " + std::to_string(tensor));
  }
}

void check_world(const Config& config, int64_t world_size) {
  check_tensor_groups(config, world_size);
  const int64_t data = world_size / config.run.parallel().tensor();
  const int64_t micro = config.run.train().micro_batch_size();
  const int64_t global = config.run.train().global_batch_size(), unit = micro * data;
  if (global % unit != 0)
    fail_input(config.where("train.global_batch_size"),
               "train.global_batch_size is " + std::to_string(global) +
                   ", expected a multiple of micro_batch_size x data-parallel degree = " +
                   std::to_string(micro) + " x " + std::to_string(data) + " = " +
                   std::to_string(unit) + ", for example " +
                   std::to_string((global + unit - 1) / unit * unit));
}

std::string to_textproto(const RunConfig& run) {
  RunConfig resolved = run;
  fill_defaults(resolved);
  pb::TextFormat::Printer printer;
  printer.SetUseUtf8StringEscaping(true);
  std::string text;
  printer.PrintToString(resolved, &text);
  return text;
}

bool is_module_regex(const pb::RepeatedPtrField<std::string>& modules) {
  return modules.size() == 1 && modules[0].find_first_of(kRegexCharacters) != std::string::npos;
}

}  // namespace lorashard
