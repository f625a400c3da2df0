// Base shard sets: writing and opening them.
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <set>

#include "checkpoint/base_digest.h"
#include "checkpoint/base_storage.h"
#include "checkpoint/json_strict.h"
#include "configs/error.h"
#include "parallel/agree.h"

namespace lorashard {
namespace {

constexpr int kVersion = 1;

std::string part_name(int rank, int ranks) {
  char name[64];
  std::snprintf(name, sizeof name, "part-%05d-of-%05d.safetensors", rank, ranks);
  return name;
}

bool empty(const TensorPart& p) { return p.row_begin >= p.row_end || p.col_begin >= p.col_end; }

// The parts of `spec` that file `rank` holds: what its rank needs and no lower rank has. Parts of
// neighbouring ranks overlap at their borders only (shared key/value heads) or are all the same
// (replicated tensors), so what is left of each is a rectangle; those that are empty are left out.
std::vector<TensorPart> owned_parts(const ModelConfig& config, const TensorSpec& spec, int rank,
                                    int ranks) {
  if (spec.split == Split::None && rank > 0) return {};
  std::vector<TensorPart> parts = tensor_parts(config, spec, rank, ranks);
  const auto before = tensor_parts(config, spec, std::max(rank - 1, 0), ranks);
  for (size_t i = 0; rank > 0 && i < parts.size(); ++i) {
    TensorPart& part = parts[i];
    const bool by_columns = part.row_begin == 0 && part.row_end == spec.rows &&
                            before[i].row_begin == 0 && before[i].row_end == spec.rows;
    if (by_columns) {
      part.col_begin = std::max(part.col_begin, before[i].col_end);
    } else {
      part.row_begin = std::max(part.row_begin, before[i].row_end);
    }
  }
  std::erase_if(parts, empty);
  return parts;
}

// The name of a tensor's `i`th part in a part file: a file may hold several (q, k and v of one).
std::string stored_name(const std::string& tensor, size_t i) {
  return i == 0 ? tensor : tensor + "." + std::to_string(i);
}

std::vector<int64_t> shape_of(const TensorSpec& spec, const TensorPart& part) {
  const int64_t rows = part.row_end - part.row_begin, cols = part.col_end - part.col_begin;
  return spec.vector ? std::vector{cols} : std::vector{rows, cols};
}

// Writes one part file and returns its digest.
FileDigest write_part(const BaseModel& base, const fs::path& dir, int rank, int ranks) {
  const auto specs = model_tensors(base.config());
  std::vector<SafetensorsWriter::Entry> entries;
  std::vector<std::pair<std::string, TensorPart>> parts;
  for (const TensorSpec& spec : specs) {
    const auto owned = owned_parts(base.config(), spec, rank, ranks);
    for (size_t i = 0; i < owned.size(); ++i) {
      entries.push_back(
          {stored_name(spec.name, i), base.find(spec.name)->dtype, shape_of(spec, owned[i])});
      parts.emplace_back(spec.name, owned[i]);
    }
  }
  const std::string name = part_name(rank, ranks);
  SafetensorsWriter out(dir / name, entries, {{"format", "lorashard-base"}});
  for (const auto& [tensor, part] : parts) {
    // Few rows at a time, so that no whole part becomes resident.
    const int64_t row_bytes = (part.col_end - part.col_begin) * size_of(base.find(tensor)->dtype);
    const int64_t step = std::max<int64_t>(1, (16 << 20) / row_bytes);
    for (int64_t row = part.row_begin; row < part.row_end; row += step) {
      const int64_t end = std::min(part.row_end, row + step);
      const WeightSlice s = base.slice(tensor, {row, end, part.col_begin, part.col_end});
      out.write(s.matrix.data, static_cast<uint64_t>((end - row) * row_bytes));
      base.release(tensor);
    }
  }
  out.close();
  FileDigest digest;
  digest.set_name(name);
  digest.set_bytes(fs::file_size(dir / name));
  digest.set_sha256(out.sha256());
  return digest;
}

FileDigest write_companion(const std::string& text, const fs::path& dir, const std::string& name) {
  fs::create_directories((dir / name).parent_path());
  OutputFile out(dir / name);
  out.write(text);
  out.close();
  FileDigest digest;
  digest.set_name(name);
  digest.set_bytes(text.size());
  digest.set_sha256(out.sha256());
  return digest;
}

void make_read_only(const fs::path& dir) {
  for (const auto& entry : fs::recursive_directory_iterator(dir))
    if (!entry.is_directory())
      fs::permissions(entry.path(),
                      fs::perms::owner_read | fs::perms::group_read | fs::perms::others_read);
}

// All parts into `dir`, shared out over the ranks; every rank returns all digests. Collective.
std::vector<FileDigest> write_parts(const BaseModel& base, int ranks, const fs::path& dir,
                                    Communicator& world) {
  struct Record {
    uint64_t bytes = 0;
    char sha256[64] = {};
  };
  const int each = (ranks + world.size() - 1) / world.size();
  std::vector<Record> mine(static_cast<size_t>(each));
  run_agreed(world, [&] {
    for (int k = 0; k < each; ++k) {
      const int part = world.rank() + k * world.size();
      if (part >= ranks) break;
      const FileDigest d = write_part(base, dir, part, ranks);
      Record& r = mine[static_cast<size_t>(k)];
      r.bytes = d.bytes();
      d.sha256().copy(r.sha256, sizeof r.sha256);
    }
  });
  std::vector<Record> all(mine.size() * static_cast<size_t>(world.size()));
  world.all_gather(mine.data(), all.data(), static_cast<int64_t>(mine.size() * sizeof(Record)),
                   "part_digests");
  std::vector<FileDigest> digests;
  for (int part = 0; part < ranks; ++part) {
    const Record& r = all[static_cast<size_t>(part % world.size() * each + part / world.size())];
    FileDigest d;
    d.set_name(part_name(part, ranks));
    d.set_bytes(r.bytes);
    d.set_sha256(std::string(r.sha256, sizeof r.sha256));
    digests.push_back(d);
  }
  return digests;
}

BaseShardManifest make_manifest(const BaseModel& base, int ranks,
                                const std::vector<Digest>& digests,
                                const std::vector<FileDigest>& files) {
  BaseShardManifest m;
  m.set_version(kVersion);
  m.set_tensor_parallel(ranks);
  m.set_base_digest(combine_digests(base.tensors(), digests));
  for (const FileDigest& f : files) *m.add_file() = f;
  const auto specs = model_tensors(base.config());
  for (size_t i = 0; i < specs.size(); ++i) {
    const BaseModel::Tensor& tensor = base.tensors()[i];
    auto* t = m.add_tensor();
    t->set_name(tensor.name);
    t->set_dtype(std::string(name_of(tensor.dtype)));
    for (const int64_t d : tensor.shape) t->add_shape(d);
    t->set_digest(to_hex(digests[i].data(), digests[i].size()));
    for (int rank = 0; rank < ranks; ++rank) {
      for (const TensorPart& part : owned_parts(base.config(), specs[i], rank, ranks)) {
        auto* p = t->add_piece();
        p->set_file(part_name(rank, ranks));
        p->set_row_begin(part.row_begin);
        p->set_row_end(part.row_end);
        p->set_col_begin(part.col_begin);
        p->set_col_end(part.col_end);
      }
    }
  }
  return m;
}

// Keeps the first message of the text format's parser.
struct FirstError : google::protobuf::io::ErrorCollector {
  std::string where, what;
  void AddError(int line, int column, const std::string& message) override {
    if (!what.empty()) return;
    where.append(":").append(std::to_string(line + 1));
    where.append(":").append(std::to_string(column + 1));
    what = message;
  }
};

BaseShardManifest read_manifest(const fs::path& path) {
  BaseShardManifest manifest;
  FirstError error;
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  if (!parser.ParseFromString(read_text(path), &manifest))
    fail_input(path.string() + error.where,
               printable(error.what) + "; this must be the manifest of a base shard set");
  if (manifest.version() != kVersion)
    fail_input(path.string(),
               "is no manifest of a base shard set of version " + std::to_string(kVersion));
  return manifest;
}

// The directory holds exactly the listed files, each of its size.
void check_inventory(const fs::path& dir, const BaseShardManifest& manifest) {
  std::set<std::string> listed{kManifestName};
  for (const FileDigest& f : manifest.file()) {
    const fs::path name(f.name());
    const bool below = name.has_filename() && name.is_relative() &&
                       name.lexically_normal() == name && *name.begin() != "..";
    if (!below || !listed.insert(f.name()).second)
      fail_input((dir / kManifestName).string(),
                 "lists the file " + printable(f.name()) + ", which is repeated or no plain name");
    std::error_code ec;
    const uint64_t bytes = fs::file_size(dir / name, ec);
    if (ec)
      fail_input((dir / name).string(), std::string("is missing; ") + kManifestName + " lists it");
    if (bytes != f.bytes())
      fail_input((dir / name).string(), "is damaged: it has " + std::to_string(bytes) +
                                            " bytes and should have " + std::to_string(f.bytes()));
  }
  for (const auto& entry : fs::recursive_directory_iterator(dir))
    if (!entry.is_directory() && !listed.count(fs::relative(entry.path(), dir).string()))
      fail_input(entry.path().string(), std::string("is not listed in ") + kManifestName +
                                            "; a base shard set is immutable, move the file away");
}

// The pieces tile rows x cols: inside it, pairwise disjoint, and of the same total area.
bool tiles(const std::vector<BasePiece>& pieces, int64_t rows, int64_t cols) {
  int64_t area = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const TensorPart& a = pieces[i].part;
    if (empty(a) || a.row_begin < 0 || a.row_end > rows || a.col_begin < 0 || a.col_end > cols)
      return false;
    area += (a.row_end - a.row_begin) * (a.col_end - a.col_begin);
    for (size_t j = 0; j < i; ++j) {
      const TensorPart& b = pieces[j].part;
      if (a.row_begin < b.row_end && b.row_begin < a.row_end && a.col_begin < b.col_end &&
          b.col_begin < a.col_end)
        return false;
    }
  }
  return area == rows * cols;
}

}  // namespace

std::unique_ptr<BaseModel> open_base_shards(const std::string& path) {
  const fs::path dir(path), manifest_path = dir / kManifestName;
  auto storage = std::make_shared<BaseStorage>();
  storage->manifest = read_manifest(manifest_path);
  const BaseShardManifest& manifest = *storage->manifest;
  check_inventory(dir, manifest);
  std::string config_text = read_text(dir / "config.json");
  std::vector<std::string> notes;
  const ModelConfig config =
      parse_model_config(config_text, (dir / "config.json").string(), &notes);

  std::map<std::string, size_t> files;
  size_t stored = 0, used = 0;
  for (const FileDigest& f : manifest.file()) {
    if (fs::path(f.name()).extension() != ".safetensors") continue;
    files[f.name()] = storage->files.size();
    storage->files.push_back(SafetensorsFile::open(dir / f.name()));
    stored += storage->files.back().tensors().size();
  }
  const auto specs = model_tensors(config);
  if (manifest.tensor_size() != static_cast<int>(specs.size()))
    fail_input(manifest_path.string(), "lists " + std::to_string(manifest.tensor_size()) +
                                           " tensors, and config.json asks for " +
                                           std::to_string(specs.size()));
  std::vector<BaseModel::Tensor> tensors;
  std::vector<Digest> digests(specs.size());
  for (size_t i = 0; i < specs.size(); ++i) {
    const auto& entry = manifest.tensor(static_cast<int>(i));
    const TensorSpec& spec = specs[i];
    const std::string where = manifest_path.string() + ": " + spec.name;
    if (entry.name() != spec.name)
      fail_input(where, "is expected here, but " + printable(entry.name()) + " is listed");
    if (!parse_hex(entry.digest(), digests[i])) fail_input(where, "its digest is no SHA-256");
    std::vector<BasePiece>& pieces = storage->pieces[spec.name];
    std::map<std::string, size_t> in_file;  // pieces so far
    for (const auto& p : entry.piece()) {
      const auto file = files.find(p.file());
      const std::string stored = stored_name(spec.name, in_file[p.file()]++);
      const TensorInfo* info =
          file == files.end() ? nullptr : storage->files[file->second].find(stored);
      if (!info) fail_input(where, "is not in the file " + printable(p.file()));
      const TensorPart part{p.row_begin(), p.row_end(), p.col_begin(), p.col_end()};
      if (name_of(info->dtype) != entry.dtype() || info->shape != shape_of(spec, part))
        fail_input((dir / p.file()).string() + ": " + spec.name,
                   "has another shape or dtype than " + std::string(kManifestName) + " says");
      pieces.push_back({file->second, *info, part});
      ++used;
    }
    if (pieces.empty() || !tiles(pieces, spec.rows, spec.cols))
      fail_input(where, "its pieces do not make up the tensor of config.json exactly");
    const std::vector<int64_t> shape(entry.shape().begin(), entry.shape().end());
    check_tensor(manifest_path.string(), spec, pieces[0].info.dtype, shape);
    tensors.push_back({spec.name, pieces[0].info.dtype, shape});
  }
  if (used != stored)
    fail_input(path, "its part files hold " + std::to_string(stored) + " tensors, but " +
                         kManifestName + " lists " + std::to_string(used));
  if (combine_digests(tensors, digests) != manifest.base_digest())
    fail_input(manifest_path.string(),
               "base_digest does not follow from the tensors' digests; the "
               "manifest was changed");
  storage->companions = find_companions(path);
  return std::make_unique<BaseModel>(path, config, std::move(config_text), std::move(tensors),
                                     std::move(storage), std::move(notes));
}

void write_base_shards(const BaseModel& base, int ranks, const std::string& out,
                       Communicator& world) {
  if (ranks < 1 || ranks > base.config().heads)
    fail_input("--tp", std::to_string(ranks) +
                           " ranks do not fit; this model can be cut for 1 to " +
                           std::to_string(base.config().heads) + " (its query heads)");
  const std::vector<Digest> digests = tensor_digests(base, world);

  // Rank 0 makes the directory and broadcasts its temporary name; empty: it could not.
  const auto share_directory = [&](const std::string& name) {
    char text[4096] = {};
    name.copy(text, sizeof text - 1);
    world.broadcast(text, sizeof text, 0, "shard_directory");
    return std::string(text);
  };
  run_agreed(world, [&] {
    if (world.rank() != 0) {
      if (const std::string dir = share_directory(""); !dir.empty())
        write_parts(base, ranks, dir, world);
      return;
    }
    bool shared = false;
    try {
      create_directory_atomic(out, [&](const fs::path& dir) {
        shared = true;
        share_directory(dir.string());
        std::vector<FileDigest> files = write_parts(base, ranks, dir, world);
        files.push_back(write_companion(base.config_text(), dir, "config.json"));
        for (const std::string& file : base.companion_files())
          files.push_back(write_companion(read_text(fs::path(base.path()) / file), dir, file));
        std::string text;
        google::protobuf::TextFormat::PrintToString(make_manifest(base, ranks, digests, files),
                                                    &text);
        write_companion(text, dir, kManifestName);
        make_read_only(dir);
      });
    } catch (...) {
      if (!shared) share_directory("");
      throw;
    }
  });
}

}  // namespace lorashard
