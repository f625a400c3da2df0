// lorashard: the command line. Each subcommand's work is elsewhere; what is here is what it is
// called.
#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <iostream>

#include "configs/error.h"
#include "configs/signals.h"
#include "launch/commands.h"
#include "launch/job.h"
#include "launch/selftest/selftest.h"
#include "parallel/agree.h"
#include "trainer/run/generate.h"
#include "trainer/run/train.h"

namespace lorashard {
namespace {

struct Arguments {
  std::string config;
  std::vector<std::string> overrides;
  bool resume = false, accept_changes = false;
  std::string profile, eval_adapter;
  ShardOptions shard;
  ExportCommandOptions exports;
  GenerateOptions generate;
  std::string generate_dtype = "fp32", generate_backend = "auto";
  std::string inspect_path;
  std::string tokenize_model, tokenize_file;
  bool decode = false;
};

void declare(CLI::App& app, Arguments& a) {
  app.set_version_flag("--version", "lorashard " LORASHARD_VERSION);
  app.require_subcommand(0, 1);
  app.footer(
      "Exit status: 0 done; 2 wrong usage, configuration or input; 3 a failure while running;\n"
      "130 or 143 train was stopped by a signal and a checkpoint of the last finished step is on\n"
      "disk (a stop before the first step, when there is none, is 3).");
  const auto run_config = [&](CLI::App* c) {
    c->add_option("CONFIG", a.config, "run configuration (protobuf text format)")->required();
    c->add_option("--set", a.overrides, "override a setting: path=value, for example lora.rank=16")
        ->type_name("PATH=VALUE")
        ->expected(1)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  };
  CLI::App* train = app.add_subcommand(
      "train", "Fine-tune with LoRA; under mpirun -n N on N ranks (TP x DP, see parallel.tensor)");
  run_config(train);
  CLI::Option* resume = train->add_flag(
      "--resume", a.resume,
      "continue the run in output.dir from its newest whole checkpoint, or begin it");
  train
      ->add_flag(
          "--accept-changes", a.accept_changes,
          "with --resume: also with other data, settings of the data, batch or seed than the "
          "run had")
      ->needs(resume);
  train
      ->add_option("--profile", a.profile,
                   "write what each rank did when to this file (Chrome trace format)")
      ->type_name("FILE");

  CLI::App* eval = app.add_subcommand("eval", "Loss and perplexity on data.eval");
  run_config(eval);
  eval->add_option("--adapter", a.eval_adapter, "PEFT adapter; without it the base alone")
      ->type_name("DIR");

  CLI::App* shard = app.add_subcommand("shard", "Write an immutable base shard set");
  shard->add_option("--model", a.shard.model, "Hugging Face directory")
      ->type_name("DIR")
      ->required();
  shard->add_option("--tp", a.shard.tensor, "tensor-parallel degree to cut for")->required();
  shard->add_option("--quantize", a.shard.quantize, "nf4 or int8; not in this version")
      ->check(CLI::IsMember({"nf4", "int8"}));
  shard->add_option("--out", a.shard.out, "new directory")->type_name("DIR")->required();

  CLI::App* exports =
      app.add_subcommand("export", "Write base and adapter as one model, or the adapter alone");
  exports->add_option("--model", a.exports.model, "Hugging Face directory or base shard set")
      ->type_name("DIR")
      ->required();
  exports->add_option("--adapter", a.exports.adapter, "PEFT adapter")->type_name("DIR")->required();
  exports->add_option("--format", a.exports.format, "merged, peft or shards")
      ->check(CLI::IsMember({"merged", "peft", "shards"}))
      ->capture_default_str();
  exports->add_option("--out", a.exports.out, "new directory")->type_name("DIR")->required();
  exports->add_option("--max-shard-size", a.exports.max_shard_size, "of each safetensors file")
      ->capture_default_str();
  exports->add_option("--dtype", a.exports.dtype, "bf16, fp16 or fp32; as stored unless given")
      ->check(CLI::IsMember({"bf16", "fp16", "fp32"}));
  exports
      ->add_option("--names", a.exports.names,
                   "of the adapter's tensors, with --format peft: peft, or vllm (each expert of a "
                   "mixture by itself)")
      ->check(CLI::IsMember({"peft", "vllm"}));
  exports->add_option("--tp", a.exports.tensor, "degree to cut for, with --format shards");

  CLI::App* generate = app.add_subcommand("generate", "Continue a prompt");
  GenerateOptions& g = a.generate;
  generate->add_option("--model", g.model, "Hugging Face directory or base shard set")
      ->type_name("DIR")
      ->required();
  generate
      ->add_option(
          "--adapter", g.adapters,
          "PEFT adapter; given several times, each in turn on the one loaded base ('base': "
          "none)")
      ->type_name("DIR")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  generate->add_option("--prompt", g.prompt, "text to continue")->required();
  generate->add_option("--max-new-tokens", g.max_new_tokens, "tokens at most")
      ->capture_default_str();
  generate->add_option("--temperature", g.temperature, "0: always the likeliest token")
      ->capture_default_str();
  generate->add_option("--top-p", g.top_p, "sample among the likeliest tokens of this probability")
      ->capture_default_str();
  generate->add_option("--seed", g.seed, "of the samples")->capture_default_str();
  generate->add_option("--dtype", a.generate_dtype, "fp32 or bf16 GEMMs")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  generate
      ->add_option("--backend", a.generate_backend, "auto (CUDA where devices answer), cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  generate->add_option("--threads", g.threads, "0: what the machine has")->capture_default_str();

  CLI::App* inspect = app.add_subcommand(
      "inspect", "What a model, base shard set, adapter or checkpoint is; verifies every digest");
  inspect->add_option("PATH", a.inspect_path, "a folder; of a run, its newest checkpoint")
      ->required();

  app.add_subcommand("selftest",
                     "Each kernel of each backend present against its reference; status 3 if one "
                     "is wrong. Under mpirun the all-reduces too, each rank on its own device");

  CLI::App* tokenize =
      app.add_subcommand("tokenize", "One JSON string a line in, one JSON array of ids a line out");
  tokenize->add_option("--model", a.tokenize_model, "directory with tokenizer.json")
      ->type_name("DIR")
      ->required();
  tokenize->add_flag("--decode", a.decode, "arrays of ids in, strings out");
  tokenize->add_option("FILE", a.tokenize_file, "- is standard input")->required();
}

int run(CLI::App& app, Arguments& a, int argc, char** argv) {
  const auto on_all_ranks = [&](const std::function<int(const Ranks&)>& body) {
    return run_job(&argc, &argv, true, body);
  };
  // The others have nothing to do and leave in order.
  const auto on_one_rank = [&](const std::function<int(const Ranks&)>& body) {
    return is_extra_rank() ? 0 : run_job(&argc, &argv, false, body);
  };
  if (app.got_subcommand("train") || app.got_subcommand("eval")) {
    const bool training = app.got_subcommand("train");
    std::atomic<bool> in_run_folder = false;  // config.run.output().dir() is known
    Config config;
    if (training) {
      stop_at_once([&] {
        return a.resume && in_run_folder &&
               std::filesystem::exists(config.run.output().dir() + "/checkpoints/latest");
      });
    }
    return on_all_ranks([&](const Ranks& ranks) {
      run_agreed(ranks.world, [&] {
        config = load_config(a.config, a.overrides, training ? ConfigUse::Train : ConfigUse::Eval);
      });
      if (!training) return evaluate(config, a.eval_adapter, ranks);
      in_run_folder = true;
      return train(config, ranks,
                   {.resume = a.resume,
                    .accept_changes = a.accept_changes,
                    .profile = a.profile,
                    .first_step_ends = stop_after_a_checkpoint,
                    .stop_signal = stop_signal,
                    .stop_within_steps = true});
    });
  }
  if (app.got_subcommand("shard")) {
    return on_all_ranks([&](const Ranks& ranks) { return shard_command(a.shard, ranks); });
  }
  if (app.got_subcommand("generate")) {
    using Backend = RunConfig::Compute::Backend;
    a.generate.backend = a.generate_backend == "cpu"    ? Backend::CPU
                         : a.generate_backend == "cuda" ? Backend::CUDA
                                                        : Backend::AUTO;
    a.generate.type = a.generate_dtype == "bf16" ? DType::BF16 : DType::F32;
    return on_all_ranks([&](const Ranks& ranks) { return generate(a.generate, ranks); });
  }
  if (app.got_subcommand("selftest")) {
    return on_all_ranks([](const Ranks& ranks) { return self_test(ranks); });
  }
  if (app.got_subcommand("export")) {
    return on_one_rank([&](const Ranks& ranks) { return export_command(a.exports, ranks); });
  }
  if (app.got_subcommand("inspect")) {
    return on_one_rank([&](const Ranks& ranks) { return inspect_command(a.inspect_path, ranks); });
  }
  return on_one_rank(
      [&](const Ranks&) { return tokenize_command(a.tokenize_model, a.tokenize_file, a.decode); });
}

}  // namespace
}  // namespace lorashard

int main(int argc, char** argv) {
  using namespace lorashard;
  own_signals();
  CLI::App app{"lorashard: LoRA fine-tuning of transformers over tensor-parallel ranks"};
  Arguments arguments;
  declare(app, arguments);
  try {
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) throw CLI::RequiredError("A subcommand");
  } catch (const CLI::ParseError& e) {
    if (is_extra_rank()) return e.get_exit_code() == 0 ? 0 : kExitInput;
    if (e.get_exit_code() == 0) return app.exit(e);  // --help, --version
    std::fprintf(stderr, "error: command line: %s; see lorashard --help\n", e.what());
    return kExitInput;
  }
  return run(app, arguments, argc, argv);
}
