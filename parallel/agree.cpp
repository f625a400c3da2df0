#include "parallel/agree.h"

#include <cstring>
#include <filesystem>
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
    if (e.on_all_ranks) throw;  // an inner run_agreed has already told everyone
    remember(e.exit_status, e.what());
  } catch (const std::filesystem::filesystem_error& e) {
    remember(kExitFailure, (e.path1().string() + ": " + e.code().message()).c_str());
  } catch (const std::bad_alloc&) {
    remember(kExitFailure, "out of memory");
  } catch (const std::exception& e) {
    remember(kExitFailure, e.what());
  }
  // The statuses first: the texts travel only when there is one.
  std::vector<int32_t> statuses(size_t(world.size()));
  world.all_gather(&mine.exit_status, statuses.data(), sizeof(int32_t), "agree");
  for (int r = 0; r < world.size(); ++r) {
    if (statuses[size_t(r)] == 0) continue;
    world.broadcast(&mine, sizeof mine, r, "agree");
    Error error(mine.exit_status, "", mine.text);
    error.on_all_ranks = true;
    throw error;
  }
}

}  // namespace lorashard
