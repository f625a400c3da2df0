// shard, export, generate, inspect and tokenize: that what one command writes the others read.
#include <sys/stat.h>

#include <set>

#include "tests/launch/scene.h"

namespace lorashard::test {
namespace {

// The value of the line "NAME: VALUE" that inspect prints (of a checkpoint: its own, then that of
// the adapter in it).
std::string inspected(const Outcome& done, const std::string& name) {
  const std::vector<std::string> lines = lines_with(done.out, name + ": ");
  if (done.status != 0 || lines.empty() || lines.front() != lines.back()) {
    ADD_FAILURE() << "no one " << name << " in\n" << done.text();
    return "";
  }
  const std::string value = lines[0].substr(lines[0].find(name + ": ") + name.size() + 2);
  return value.substr(0, value.find(' '));
}

void unpack(const std::string& name, const fs::path& to) {
  const fs::path from = fs::path(LORASHARD_SOURCE_DIR) / "tests/golden/tokenizers" / name;
  const Outcome done = test::run({.arguments = {"xz", "-dc", from.string() + ".json.xz"}});
  ASSERT_EQ(done.status, 0) << done.text();
  write_file(to, done.out);
}

// The model of the quickstart: the one here that has a tokenizer.
fs::path text_model() { return fs::path(LORASHARD_SOURCE_DIR) / "configs/quickstart/base_model"; }

TEST(Export, MergedInFp32HasTheLossOfBaseAndAdapter) {
  const Scene scene("qwen2");
  ASSERT_EQ(scene.train(2, {"--set", "parallel.tensor=2", "--set", "train.steps=3"}).status, 0);
  const fs::path adapter = scene.run / "adapter", out = scene.dir / "merged";
  const std::vector<std::string> command{"export",     "--model",        scene.model,
                                         "--adapter",  adapter.string(), "--out",
                                         out.string(), "--dtype",        "fp32"};
  std::vector<std::string> in_shards = command;
  in_shards.insert(in_shards.end(), {"--max-shard-size", "50KB"});
  const Outcome done = scene.lorashard(in_shards);
  ASSERT_EQ(done.status, 0) << done.text();
  // One line for each matrix with its rounding error, which is none to speak of in fp32.
  EXPECT_GT(lines_with(done.out, "largest rounding error").size(), 4u) << done.text();

  const json index = json::parse(read_file(out / "model.safetensors.index.json"));
  std::set<std::string> files;
  for (const auto& [tensor, file] : index.at("weight_map").items()) files.insert(file);
  EXPECT_GT(files.size(), 2u);
  for (const std::string& file : files) EXPECT_TRUE(fs::exists(out / file)) << file;
  EXPECT_EQ(json::parse(read_file(out / "config.json")).at("torch_dtype"), "float32");

  const double both = scene.eval_loss(0, 1, scene.model, adapter);
  EXPECT_NEAR(scene.eval_loss(0, 1, out, ""), both, 2e-6 * both);
  EXPECT_NEAR(scene.eval_loss(3, 3, out, ""), both, 1e-5 * both);
  const double base = scene.eval_loss(0, 1, scene.model, "");
  EXPECT_GT(std::abs(base - both), 1e-3) << "the adapter changes nothing, so this shows nothing";

  // An output that is there is left alone; so is everything when the adapter is of another base.
  const auto before = scene.tree();
  expect_one_error(scene.lorashard(command), 2, out.string());
  std::vector<std::string> other = command;
  other[2] = out.string();
  other[6] = (scene.dir / "other").string();
  expect_one_error(scene.lorashard(other), 2, adapter.string(), {"digest"});
  EXPECT_EQ(difference(before, scene.tree()), std::vector<std::string>{});
}

TEST(Export, PeftAndMergedShardsFromAShardSet) {
  const Scene scene;
  const fs::path shards = scene.dir / "shards", peft = scene.dir / "peft",
                 merged = scene.dir / "merged", merged_shards = scene.dir / "merged_shards";
  ASSERT_EQ(scene.lorashard({"shard", "--model", scene.model, "--tp", "3", "--out", shards}).status,
            0);
  const auto exported = [&](const fs::path& model, const std::string& format, const fs::path& out) {
    const Outcome done = scene.lorashard(
        {"export", "--model", model, "--adapter", scene.adapter, "--format", format, "--out", out});
    EXPECT_EQ(done.status, 0) << done.text();
  };
  exported(scene.model, "peft", peft);
  const double both = scene.eval_loss(0, 1, scene.model, scene.adapter);
  EXPECT_EQ(scene.eval_loss(0, 1, scene.model, peft), both);
  // bf16 as stored: the same file from either form of the base, and near the unmerged loss.
  exported(scene.model, "merged", merged);
  exported(shards, "merged", scene.dir / "merged2");
  EXPECT_EQ(read_file(merged / "model.safetensors"),
            read_file(scene.dir / "merged2/model.safetensors"));
  EXPECT_NEAR(scene.eval_loss(0, 1, merged, ""), both, 1e-2 * both);
  exported(shards, "shards", merged_shards);
  EXPECT_EQ(inspected(scene.lorashard({"inspect", merged_shards}), "base digest"),
            inspected(scene.lorashard({"inspect", merged}), "base digest"));
}

TEST(Shard, ASetForAnyDegreeIsTheSameBaseAtEveryOther) {
  const Scene scene("qwen3");
  const fs::path shards = scene.dir / "shards";
  // Three parts, written by two ranks.
  const Outcome done =
      test::run(scene.command(2, {"shard", "--model", scene.model, "--tp", "3", "--out", shards}));
  ASSERT_EQ(done.status, 0) << done.text();
  for (const auto& entry : fs::directory_iterator(shards)) {
    struct stat status;
    ASSERT_EQ(::stat(entry.path().c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777, 0444u) << entry.path();
  }
  EXPECT_EQ(inspected(scene.lorashard({"inspect", shards}), "base digest"),
            inspected(scene.lorashard({"inspect", scene.model}), "base digest"));
  expect_one_error(scene.lorashard({"shard", "--model", scene.model, "--tp", "3", "--out", shards}),
                   2, shards.string());

  const double loss = scene.eval_loss(0, 1, scene.model, scene.adapter);
  for (const int degree : {1, 2, 4}) {
    SCOPED_TRACE(degree);
    EXPECT_NEAR(scene.eval_loss(degree, degree, shards, scene.adapter), loss, 1e-5 * loss);
    const fs::path run = scene.dir / ("run" + std::to_string(degree));
    const Outcome trained =
        scene.train(degree, {"--set", "model.path=" + shards.string(), "--set",
                             "parallel.tensor=" + std::to_string(degree), "--set", "train.steps=2",
                             "--set", "output.dir=" + run.string()});
    ASSERT_EQ(trained.status, 0) << trained.text();
    const std::vector<double> got = losses(run, 2);
    for (size_t i = 0; i < got.size(); ++i) {
      const double expected = scene.expected.at("steps")[i].at("loss");
      EXPECT_NEAR(got[i], expected, 2e-4 * expected);
    }
  }

  // One turned bit: named by whoever reads the set, and never trained on.
  const fs::path part = shards / "part-00001-of-00003.safetensors";
  std::string bytes = read_file(part);
  bytes[bytes.size() - 100] ^= 4;
  fs::permissions(part, fs::perms::owner_write, fs::perm_options::add);
  write_file(part, bytes);
  for (const int ranks : {0, 2}) {
    expect_one_error(scene.train(ranks, {"--set", "model.path=" + shards.string()}), 2,
                     part.string());
  }
  EXPECT_FALSE(fs::exists(scene.run));
  expect_one_error(scene.lorashard({"inspect", shards}), 2, part.string());
}

TEST(Inspect, SaysWhatEachThingIs) {
  const Scene scene;
  ASSERT_EQ(scene.train(0, {"--set", "train.steps=2"}).status, 0);
  const std::string base = inspected(scene.lorashard({"inspect", scene.model}), "base digest");
  EXPECT_EQ(base.size(), 64u);
  const fs::path checkpoint = scene.run / "checkpoints/step-000002";
  for (const fs::path& path : {checkpoint, scene.run}) {
    const Outcome done = scene.lorashard({"inspect", path});
    EXPECT_EQ(inspected(done, "base digest"), base);
    EXPECT_EQ(lines_with(done.out, "training checkpoint: ").size(), 1u) << done.text();
    EXPECT_EQ(lines_with(done.out, "step 2, 8 sequences").size(), 1u) << done.text();
    EXPECT_EQ(lines_with(done.out, ", verified").size(), 3u) << done.text();
  }
  for (const fs::path& path : {scene.run / "adapter", scene.adapter}) {
    const Outcome done = scene.lorashard({"inspect", path});
    EXPECT_EQ(done.status, 0) << done.text();
    EXPECT_GE(lines_with(done.out, "rank").size(), 1u) << done.text();
  }
  // Under mpirun one rank speaks.
  EXPECT_EQ(inspected(test::run(scene.command(2, {"inspect", scene.model})), "base digest"), base);

  const fs::path file = checkpoint / "adapter_model.safetensors";
  std::string bytes = read_file(file);
  bytes.back() ^= 1;
  write_file(file, bytes);
  expect_one_error(scene.lorashard({"inspect", checkpoint}), 2, file.string());
  expect_one_error(scene.lorashard({"inspect", scene.dir / "nothing"}), 2, scene.dir / "nothing");
  expect_one_error(scene.lorashard({"inspect", scene.dir.path()}), 2, scene.dir.path());
}

TEST(Generate, SwapsAdaptersOnOneBaseAndAgreesWithTheMergedModel) {
  const Scene scene;
  // A short run on text gives an adapter that says something else.
  const std::string program_text =
      "model { path: \"" + text_model().string() + "\" }\ndata { train: \"" +
      (text_model().parent_path() / "fortunes.train.jsonl").string() +
      "\" seq_len: 16 }\nlora { rank: 4 alpha: 32 }\noptimizer { learning_rate: 1e-2 }\n"
      "train { steps: 3 global_batch_size: 2 micro_batch_size: 1 }\ncompute { threads: 1 }\n"
      "parallel { tensor: 2 }\noutput { dir: \"" +
      scene.run.string() + "\" }\n";
  write_file(scene.config, program_text);
  const Outcome trained = scene.train(2);
  ASSERT_EQ(trained.status, 0) << trained.text();
  EXPECT_EQ(lines_with(trained.out, "were cut to data.seq_len 16").size(), 1u) << trained.text();
  const std::string adapter = (scene.run / "adapter").string();
  const std::vector<std::string> ask{"--prompt", "In the beginning", "--max-new-tokens",
                                     "12",       "--threads",        "1"};
  const auto generate = [&](int ranks, const std::vector<std::string>& arguments) {
    std::vector<std::string> all{"generate"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    all.insert(all.end(), ask.begin(), ask.end());
    const Outcome done = test::run(scene.command(ranks, all));
    EXPECT_EQ(done.status, 0) << done.text();
    return done.out;
  };
  const std::string base = generate(0, {"--model", text_model()});
  EXPECT_TRUE(base.starts_with("In the beginning")) << base;
  EXPECT_GT(base.size(), std::string("In the beginning\n").size());
  const std::string tuned = generate(0, {"--model", text_model(), "--adapter", adapter});
  EXPECT_NE(tuned, base);
  const std::string all = generate(0, {"--model", text_model(), "--adapter", adapter, "--adapter",
                                       "base", "--adapter", adapter});
  const std::string head = "== " + adapter + "\n";
  EXPECT_EQ(all, head + tuned + "== base\n" + base + head + tuned);
  EXPECT_EQ(generate(2, {"--model", text_model(), "--adapter", adapter}), tuned);

  const fs::path merged = scene.dir / "merged";
  ASSERT_EQ(scene
                .lorashard({"export", "--model", text_model(), "--adapter", adapter, "--out",
                            merged.string(), "--dtype", "fp32"})
                .status,
            0);
  EXPECT_EQ(generate(0, {"--model", merged}), tuned);
  // Samples are drawn by seed.
  const std::vector<std::string> warm{"--model", text_model(), "--temperature", "1"};
  const auto seeded = [&](const char* seed) {
    std::vector<std::string> a = warm;
    a.insert(a.end(), {"--seed", seed});
    return generate(0, a);
  };
  EXPECT_EQ(seeded("1"), seeded("1"));
  EXPECT_NE(seeded("1"), seeded("2"));
}

TEST(Generate, StopsAtTheIdsOfGenerationConfigToo) {
  const Scene scene;
  const fs::path model = scene.dir / "stops";
  fs::copy(text_model(), model);
  const auto generate = [&] {
    return scene.lorashard({"generate", "--model", model, "--prompt", "In the beginning",
                            "--max-new-tokens", "4", "--threads", "1"});
  };
  const auto ids = [&](std::string text) {
    Command encode = scene.command(0, {"tokenize", "--model", model, "-"});
    encode.input = json(text).dump() + "\n";
    return json::parse(test::run(encode).out);
  };
  std::string text = generate().out;
  ASSERT_FALSE(text.empty());
  text.pop_back();  // the line's end
  const json prompt = ids("In the beginning"), all = ids(text);
  ASSERT_GT(all.size(), prompt.size());
  const json first = all[prompt.size()];
  const auto stop_at = [&](const json& eos) {
    fs::remove(model / "generation_config.json");
    write_file(model / "generation_config.json", json{{"eos_token_id", eos}}.dump());
    return generate();
  };
  EXPECT_EQ(stop_at({0, first}).out, "In the beginning\n");
  EXPECT_EQ(stop_at(first).out, "In the beginning\n");
  EXPECT_EQ(stop_at(nullptr).out, text + "\n");
  expect_one_error(stop_at("</s>"), 2, (model / "generation_config.json").string(),
                   {"eos_token_id", "token id"});
}

TEST(Tokenize, RoundTripsFromFileAndStandardInput) {
  const Scene scene;
  unpack("gpt2", scene.dir / "tok/tokenizer.json");
  const std::string model = (scene.dir / "tok").string();
  const std::string text =
      "\"Hello, world!\"\n\"\"\n\"caf\\u00e9 \xf0\x9f\x91\xa9\xe2\x80\x8d"
      "\xf0\x9f\x92\xbb\\n\\ttab <|endoftext|> x\"\n";
  Command encode = scene.command(0, {"tokenize", "--model", model, "-"});
  encode.input = text;
  const Outcome ids = test::run(encode);
  ASSERT_EQ(ids.status, 0) << ids.text();
  EXPECT_EQ(lines_with(ids.out, "[").size(), 3u) << ids.out;
  EXPECT_EQ(lines_with(ids.out, "[]").size(), 1u) << ids.out;
  EXPECT_NE(ids.out.find("1313"), std::string::npos) << "no <|endoftext|> in " << ids.out;
  write_file(scene.dir / "text", text);
  EXPECT_EQ(scene.lorashard({"tokenize", "--model", model, scene.dir / "text"}).out, ids.out);
  Command decode = scene.command(0, {"tokenize", "--model", model, "--decode", "-"});
  decode.input = ids.out;
  const Outcome back = test::run(decode);
  ASSERT_EQ(back.status, 0) << back.text();
  std::istringstream got(back.out), wanted(text);
  for (std::string a, b; std::getline(wanted, b);) {
    ASSERT_TRUE(std::getline(got, a)) << back.out;
    EXPECT_EQ(json::parse(a), json::parse(b));
  }

  encode.input = "\"fine\"\n\"\xff\"\n";
  expect_one_error(test::run(encode), 2, "standard input:2", {"byte 2"});
  encode.input = "\"fine\"\n\"fine\"\n[1]\n";
  expect_one_error(test::run(encode), 2, "standard input:3");
  decode.input = "[1]\n[999999]\n";
  expect_one_error(test::run(decode), 2, "standard input:2", {"999999"});
  expect_one_error(scene.lorashard({"tokenize", "--model", scene.model, scene.dir / "text"}), 2,
                   (scene.model / "tokenizer.json").string());
}

}  // namespace
}  // namespace lorashard::test
