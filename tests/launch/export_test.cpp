// Exports that are interrupted, and sizes as users write them.
#include <signal.h>

#include "tests/launch/scene.h"

namespace lorashard::test {
namespace {

std::vector<std::string> export_of(const Scene& scene, const std::string& format,
                                   const fs::path& out) {
  return {"export",   "--model", scene.model, "--adapter", scene.adapter,
          "--format", format,    "--out",     out};
}

// What lies beside `out` under its name.
size_t leftovers(const fs::path& out) {
  size_t n = 0;
  for (const auto& entry : fs::directory_iterator(out.parent_path())) {
    n += entry.path().filename().string().starts_with("." + out.filename().string());
  }
  return n;
}

TEST(InterruptedExport, LeavesNothingAndClearsWhatAKilledOneLeft) {
  const Scene scene;
  const fs::path out = scene.dir / "out";
  for (const std::string format : {"merged", "shards", "peft"}) {
    SCOPED_TRACE(format);
    Command slow = scene.command(0, export_of(scene, format, out));
    slow.environment["LD_PRELOAD"] = kSlowFsync;
    slow.environment["SLOW_FSYNC_S"] = "30";
    slow.environment["XDG_CACHE_HOME"] =
        "/proc/none";  // the export's is the first file to be synced
    const auto stopped_by = [&](int signal) {
      Process job(slow);
      EXPECT_TRUE(job.wait_until([&] { return leftovers(out) > 0; }));
      const std::vector<pid_t> programs = job.find(kLorashard);
      EXPECT_EQ(programs.size(), 1u);
      if (!programs.empty()) ::kill(programs[0], signal);
      const Outcome done = job.wait();
      EXPECT_NE(done.status, 0);
      EXPECT_LT(done.seconds, 20) << signal << done.text();
    };
    for (const int signal : {SIGTERM, SIGHUP}) {
      stopped_by(signal);
      EXPECT_EQ(leftovers(out), 0u);
    }
    stopped_by(SIGKILL);
    EXPECT_GT(leftovers(out), 0u);
    EXPECT_FALSE(fs::exists(out));
    const Outcome done = scene.lorashard(export_of(scene, format, out));
    EXPECT_EQ(done.status, 0) << done.text();
    EXPECT_EQ(leftovers(out), 0u);
    fs::remove_all(out);
  }
}

TEST(ExportSizes, AreReadAsUsersWriteThem) {
  const Scene scene;
  const fs::path out = scene.dir / "out";
  const auto sized = [&](const std::string& size) {
    std::vector<std::string> arguments = export_of(scene, "merged", out);
    arguments.insert(arguments.end(), {"--max-shard-size", size});
    return scene.lorashard(arguments);
  };
  for (const char* whole : {"1.5GB", "5gb", "2TiB", "4000000"}) {
    const Outcome done = sized(whole);
    ASSERT_EQ(done.status, 0) << whole << done.text();
    EXPECT_TRUE(fs::exists(out / "model.safetensors")) << whole;
    fs::remove_all(out);
  }
  ASSERT_EQ(sized("0.05mb").status, 0);
  EXPECT_TRUE(fs::exists(out / "model.safetensors.index.json"));
  fs::remove_all(out);
  for (const char* wrong : {"", "GB", "5XB", "-5GB", "0GB", "0.1B", "nan", "inf", "1e3", "5G B",
                            "9999999999TiB", "99999999999999999999"}) {
    expect_one_error(sized(wrong), 2, "--max-shard-size");
    EXPECT_FALSE(fs::exists(out));
  }
}

}  // namespace
}  // namespace lorashard::test
