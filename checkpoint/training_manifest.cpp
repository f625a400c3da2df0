#include "checkpoint/training_manifest.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include "configs/error.h"

namespace lorashard {
namespace {

constexpr uint32_t kFormat = 1;

// The last line, which covers every byte before it.
std::string digest_line(const std::string& text) {
  return "manifest_sha256: \"" + sha256_hex(text.data(), text.size()) + "\"\n";
}

struct FirstError : google::protobuf::io::ErrorCollector {
  std::string text;
  void AddError(int line, int column, const std::string& message) override {
    if (text.empty())
      text = "line " + std::to_string(line + 1) + ", column " + std::to_string(column + 1) + ": " +
             message;
  }
};

TrainingManifest read_manifest(const fs::path& path) {
  const std::string text = read_text(path);
  const size_t line = text.rfind("manifest_sha256:");
  if (line == std::string::npos || text.substr(line) != digest_line(text.substr(0, line)))
    fail_input(path.string(), "is damaged: it does not end with its own SHA-256");
  TrainingManifest manifest;
  FirstError error;
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  if (!parser.ParseFromString(text, &manifest)) fail_input(path.string(), error.text);
  if (manifest.format() != kFormat)
    fail_input(path.string(), "has the format " + std::to_string(manifest.format()) +
                                  "; this version reads format " + std::to_string(kFormat));
  if (manifest.step() < 0 || manifest.sequences_consumed() < 0 || manifest.tokens() < 0 ||
      manifest.steps_skipped() < 0 || manifest.steps_skipped() > manifest.step() ||
      manifest.data_begins() < 0 || manifest.data_begins() > manifest.sequences_consumed() ||
      manifest.sequences() < 0)
    fail_input(path.string(), "holds a counter that cannot be");
  return manifest;
}

}  // namespace

void write_training_manifest(const fs::path& dir, const TrainingCounters& c,
                             const std::map<std::string, std::string>& digests) {
  TrainingManifest m;
  m.set_format(kFormat);
  m.set_step(c.step);
  m.set_sequences_consumed(c.sequences_consumed);
  m.set_tokens(c.tokens);
  m.set_steps_skipped(c.steps_skipped);
  m.set_data_begins(c.data_begins);
  m.set_sequences(c.sequences);
  m.set_seed(c.seed);
  m.set_base_digest(c.base_digest);
  m.set_data_digest(c.data_digest);
  m.set_config_digest(c.config_digest);
  *m.mutable_setting() = {c.settings.begin(), c.settings.end()};
  *m.mutable_change() = {c.changes.begin(), c.changes.end()};
  for (const auto& [name, digest] : digests) {
    FileDigest& file = *m.add_file();
    file.set_name(name);
    file.set_bytes(fs::file_size(dir / name));
    file.set_sha256(digest);
  }
  std::string text;
  google::protobuf::TextFormat::PrintToString(m, &text);
  OutputFile out(dir / kManifestFile, false);
  out.write(text + digest_line(text));
  out.close();
}

TrainingManifest verify_training_manifest(const fs::path& dir) {
  const TrainingManifest manifest = read_manifest(dir / kManifestFile);
  std::error_code ec;
  for (const FileDigest& file : manifest.file()) {
    const fs::path path = dir / file.name();
    if (path.parent_path() != dir)
      fail_input((dir / kManifestFile).string(), "lists " + file.name() + ", which lies outside");
    if (!fs::exists(path, ec)) fail_input(path.string(), "is missing");
    const uint64_t bytes = fs::file_size(path, ec);
    if (ec || bytes != file.bytes())
      fail_input(path.string(), "has " + std::to_string(ec ? 0 : bytes) + " bytes; the manifest " +
                                    "says " + std::to_string(file.bytes()));
    const std::string digest = sha256_file(path);
    if (digest != file.sha256())
      fail_input(path.string(), "SHA-256 differs: the file's is " + digest +
                                    ", the manifest says " + file.sha256());
  }
  return manifest;
}

}  // namespace lorashard
