#include "trainer/run/profile_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "checkpoint/file_io.h"
#include "parallel/agree.h"

namespace lorashard {
namespace {

// Complete events ("ph":"X") behind the name of the process that they are of; times in
// microseconds.
std::string chrome_trace_events(const std::vector<ProfileEvent>& events, bool enqueued, int rank) {
  std::string text = fmt::format(
      R"({{"name":"process_name","ph":"M","pid":{},"args":{{"name":"rank {}{}"}}}})", rank, rank,
      enqueued ? ": the host's time, in which work for the device is enqueued" : "");
  for (const ProfileEvent& e : events) {
    const bool kernel = std::string_view(e.category) == "kernel";
    text += fmt::format(
        R"(,{}{{"name":"{}","cat":"{}","ph":"X","pid":{},"tid":0,"ts":{:.3f},"dur":{:.3f})", '\n',
        e.name, kernel && enqueued ? "enqueue" : e.category, rank, double(e.start_ns) * 1e-3,
        double(e.duration_ns) * 1e-3);
    if (e.work > 0) {
      text += fmt::format(R"(,"args":{{"{}":{:.0f})", kernel ? "flops" : "bytes", e.work);
      if (!enqueued) {
        text += fmt::format(R"(,"G per s":{:.1f})",
                            e.work / double(std::max<int64_t>(1, e.duration_ns)));
      }
      text += "}";
    }
    text += "}";
  }
  return text;
}

}  // namespace

void write_profile(const std::string& path, const std::vector<ProfileEvent>& events,
                   Backend backend, Communicator& world) {
  const std::string mine = chrome_trace_events(events, backend == Backend::CUDA, world.rank());
  std::vector<int64_t> sizes(size_t(world.size()));
  const auto size = int64_t(mine.size());
  world.all_gather(&size, sizes.data(), sizeof size, "profile");
  std::string all;
  for (int r = 0; r < world.size(); ++r) {
    std::string text = r == world.rank() ? mine : std::string(size_t(sizes[size_t(r)]), '\0');
    world.broadcast(text.data(), sizes[size_t(r)], r, "profile");
    if (world.rank() == 0) all += (all.empty() ? "" : ",\n") + text;
  }
  on_first_rank(world, [&] { write_file_atomic(path, "[\n" + all + "\n]\n"); });
}

}  // namespace lorashard
