// One base on all ranks: each group of ranks that has the same files digests them, and the digests
// are compared tensor by tensor.
#include <sstream>

#include "checkpoint/agreed_files.h"
#include "checkpoint/base_digest.h"
#include "configs/error.h"
#include "parallel/agree.h"

namespace lorashard {
namespace {

// A line for each tensor: "NAME DTYPE SHAPE HEX".
std::vector<std::string> describe_tensors(const BaseModel& base,
                                          const std::vector<Digest>& digests) {
  std::vector<std::string> lines;
  for (size_t i = 0; i < digests.size(); ++i) {
    const BaseModel::Tensor& t = base.tensors()[i];
    lines.push_back(t.name + " " + std::string(name_of(t.dtype)) + " " + std::to_string(t.rows()) +
                    "x" + std::to_string(t.cols()) + " " +
                    to_hex(digests[i].data(), digests[i].size()));
  }
  return lines;
}

[[noreturn]] void fail_base(const std::string& where, const Communicator& world,
                            const std::string& what) {
  fail_input(where,
             what + " on " + world.place() + " than on rank 0; give every host the same base");
}

}  // namespace

std::vector<Digest> tensor_digests(const BaseModel& base, Communicator& world) {
  if (world.size() == 1) return own_tensor_digests(base, world);
  std::vector<FileIdentity> files;
  for (const SafetensorsFile& f : base.storage().files) files.push_back(f.file().identity());
  const int color = color_of_same_files(world, files);
  int others = color != 0;
  std::vector<int> all(size_t(world.size()));
  world.all_gather(&others, all.data(), sizeof others, "same_base");
  for (const int other : all) others |= other;
  if (!others) return own_tensor_digests(base, world);

  const std::unique_ptr<Communicator> group = world.split(color);
  std::vector<Digest> digests;
  run_agreed(world, [&] {
    try {
      digests = own_tensor_digests(base, *group);
    } catch (Error& e) {
      e.on_all_ranks = false;  // known to this group alone
      throw;
    }
  });
  const std::vector<std::string> mine = describe_tensors(base, digests);
  std::string text;
  for (const std::string& line : mine) text += line + "\n";
  agree_on_text(world, text, [&](const std::string& of_rank_0) {
    std::istringstream lines(of_rank_0);
    std::string first;
    for (size_t i = 0; i < mine.size() && std::getline(lines, first); ++i) {
      if (first == mine[i]) continue;
      const std::string& name = base.tensors()[i].name;
      const BasePiece& piece = base.storage().pieces.at(name).front();
      fail_base(base.storage().files[piece.file].file().path().string() + ": " + name, world,
                "is another tensor");
    }
    fail_base(base.path(), world, "has other tensors");
  });
  return digests;
}

std::string BaseModel::digest(Communicator& world) const {
  return combine_digests(tensors_, tensor_digests(*this, world));
}

}  // namespace lorashard
