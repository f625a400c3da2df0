#include "parallel/agree.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "configs/error.h"

namespace lorashard {
namespace {
// Longer texts are cut: one line of an error is what has to travel.
constexpr size_t kTextBytes = 4096;
struct Outcome {
  int32_t exit_status;
  char text[kTextBytes];
};
}  // namespace

void run_agreed(Communicator& world, const std::function<void()>& body) {
  Outcome mine{};
  const auto remember = [&](int status, const char* text) {
    mine.exit_status = status;
    std::strncpy(mine.text, text, kTextBytes - 1);
  };
  try {
    body();
  } catch (const Error& e) {
    if (e.on_all_ranks) throw;  // an inner run_agreed has already reported it to everyone
    remember(e.exit_status, e.what());
  } catch (const std::filesystem::filesystem_error& e) {
    remember(kExitFailure, (e.path1().string() + ": " + e.code().message()).c_str());
  } catch (const std::bad_alloc&) {
    remember(kExitFailure, "out of memory");
  } catch (const std::exception& e) {
    remember(kExitFailure, e.what());
  }
  // The statuses first: the texts travel only when there is one.
  struct Head {
    int32_t exit_status, host;
  };
  const Head head{mine.exit_status, world.host()};
  std::vector<Head> heads(size_t(world.size()));
  world.all_gather(&head, heads.data(), sizeof head, "agree");
  const auto any = [&](const auto& holds) {
    return std::any_of(heads.begin(), heads.end(), holds);
  };
  // A path alone does not say whose file it is where other hosts have no error.
  const bool name_host = any([](const Head& h) { return h.exit_status == 0; }) &&
                         any([&](const Head& h) { return h.host != heads[0].host; });
  for (int r = 0; r < world.size(); ++r) {
    if (heads[size_t(r)].exit_status == 0) continue;
    if (name_host && r == world.rank()) {
      remember(mine.exit_status, (std::string(mine.text) + " (" + world.place() + ")").c_str());
    }
    world.broadcast(&mine, sizeof mine, r, "agree");
    fail_on_all_ranks(mine.exit_status, "", mine.text);
  }
}

void on_first_rank(Communicator& world, const std::function<void()>& body) {
  run_agreed(world, [&] {
    if (world.rank() == 0) body();
  });
}

}  // namespace lorashard
