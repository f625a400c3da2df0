#include "checkpoint/agreed_files.h"

#include <algorithm>
#include <map>

#include "checkpoint/base_digest.h"
#include "checkpoint/file_digest.h"
#include "configs/error.h"
#include "parallel/agree.h"

namespace lorashard {
namespace {

// The places of all ranks, on every rank.
std::vector<std::string> gather_places(Communicator& world) {
  constexpr size_t kLongest = 320;
  std::string mine = world.place();
  mine.resize(kLongest);
  std::string all(kLongest * size_t(world.size()), '\0');
  world.all_gather(mine.data(), all.data(), int64_t{kLongest}, "places");
  std::vector<std::string> places;
  for (int r = 0; r < world.size(); ++r) {
    places.emplace_back(all.c_str() + kLongest * size_t(r));
  }
  return places;
}

// What is known of one file on one rank.
struct Found {
  Digest digest{};
  unsigned char exists = 0;
  bool operator==(const Found&) const = default;
};

std::string short_hex(const Found& f) {
  return to_hex(f.digest.data(), f.digest.size()).substr(0, 16) + "…";
}

}  // namespace

int color_of_same_files(Communicator& world, const std::vector<FileIdentity>& files) {
  std::string text = std::to_string(world.host());
  for (const FileIdentity& id : files) {
    for (const auto number :
         {id.bytes, id.inode, id.device, uint64_t(id.modified_ns), uint64_t(id.changed_ns)}) {
      text.append(" ").append(std::to_string(number));
    }
  }
  Sha256 hash;
  hash.update(text);
  const Digest mine = hash.finish();
  std::vector<Digest> all(size_t(world.size()));
  world.all_gather(mine.data(), all.data(), sizeof mine, "file_identities");
  return int(std::find(all.begin(), all.end(), mine) - all.begin());
}

std::vector<std::string> agreed_file_digests(Communicator& world,
                                             const std::vector<fs::path>& files) {
  std::vector<FileIdentity> identities;
  for (const fs::path& file : files) identities.push_back(identify_file(file));
  const int color = color_of_same_files(world, identities);
  std::vector<int> colors(size_t(world.size()));
  world.all_gather(&color, colors.data(), sizeof color, "file_identities");
  // File i belongs to the i-th of those that share it.
  std::vector<int> sharing;
  for (int r = 0; r < world.size(); ++r)
    if (colors[size_t(r)] == color) sharing.push_back(r);
  const auto reader = [&](size_t i) { return sharing[i % sharing.size()]; };

  std::vector<Found> mine(files.size()), all(files.size() * size_t(world.size()));
  run_agreed(world, [&] {
    for (size_t i = 0; i < files.size(); ++i) {
      mine[i].exists = !(identities[i] == FileIdentity{});
      if (mine[i].exists && reader(i) == world.rank()) {
        parse_hex(cached_file_digest(files[i]), mine[i].digest);
      }
    }
  });
  world.all_gather(mine.data(), all.data(), int64_t(mine.size() * sizeof(Found)), "file_digests");
  const auto of_rank = [&](int r, size_t i) -> const Found& {
    return all[size_t(r) * files.size() + i];
  };
  for (size_t i = 0; i < files.size(); ++i) mine[i] = of_rank(reader(i), i);
  world.all_gather(mine.data(), all.data(), int64_t(mine.size() * sizeof(Found)), "file_digests");

  const std::vector<std::string> places = gather_places(world);
  run_agreed(world, [&] {
    for (size_t i = 0; i < files.size(); ++i) {
      const Found& first = of_rank(0, i);
      if (mine[i] == first) continue;
      const std::string name = files[i].string(), here = world.place();
      if (!mine[i].exists || !first.exists) {
        const bool lacks = !mine[i].exists;
        fail_input(name, "is there on " + (lacks ? places[0] : here) + " and not on " +
                             (lacks ? here : places[0]) + "; give every host the same files");
      }
      fail_input(name, "is another file on " + here + " (SHA-256 " + short_hex(mine[i]) +
                           ") than on " + places[0] + " (" + short_hex(first) +
                           "); give every host the same file");
    }
  });
  std::vector<std::string> digests;
  for (const Found& f : mine) {
    digests.push_back(f.exists ? to_hex(f.digest.data(), f.digest.size()) : "");
  }
  return digests;
}

void agree_on_text(Communicator& world, const std::string& mine,
                   const std::function<void(const std::string& of_rank_0)>& what) {
  auto bytes = int64_t(mine.size());
  world.broadcast(&bytes, sizeof bytes, 0, "inputs");
  std::string first = mine;
  first.resize(size_t(bytes));
  world.broadcast(first.data(), bytes, 0, "inputs");
  run_agreed(world, [&] {
    if (mine != first) what(first);
  });
}

}  // namespace lorashard
