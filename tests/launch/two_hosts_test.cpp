// A job over two hosts, which are network namespaces of this machine (tests/support/two_hosts.sh).
#include <unistd.h>

#include "tests/launch/scene.h"

namespace lorashard::test {
namespace {

class TwoHosts : public testing::Test {
 protected:
  void SetUp() override {
    const Outcome mpirun = test::run({.arguments = {"mpirun", "--version"}});
    if (mpirun.out.find("Open MPI") == std::string::npos) GTEST_SKIP() << "for Open MPI's mpirun";
    if (!hosts("up", {})) GTEST_SKIP() << "network namespaces need root and iproute2";
    write_file(scene_.dir / "hosts", "10.77.0.1 slots=1\n10.77.0.2 slots=1\n");
  }
  void TearDown() override { hosts("down", {}); }

  bool hosts(const std::string& what, const std::vector<std::string>& more) {
    std::vector<std::string> arguments{"bash", script_, what, name_};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return test::run({.arguments = arguments}).status == 0;
  }
  // `train` by run_nodes.sh on the first host: rank 0 there, rank 1 on the second.
  Command train(const std::vector<std::string>& more) {
    Command c;
    const fs::path source(LORASHARD_SOURCE_DIR);
    c.arguments = {"bash",
                   script_,
                   "on",
                   name_,
                   "a",
                   "bash",
                   source / "launch/run_nodes.sh",
                   scene_.dir / "hosts"};
    for (const std::string& a : scene_.configured("train", more)) c.arguments.push_back(a);
    c.environment = {{"LORASHARD", kLorashard},
                     {"XDG_CACHE_HOME", scene_.dir / ".cache"},
                     {"OMPI_MCA_plm_rsh_agent", "bash " + script_ + " agent " + name_},
                     {"OMPI_MCA_btl_tcp_if_include", "10.77.0.0/24"},
                     {"OMPI_MCA_oob_tcp_if_include", "10.77.0.0/24"},
                     {"OMPI_MCA_hwloc_base_binding_policy", "none"}};
    c.time_limit_s = 60;
    return c;
  }

  Scene scene_;
  const std::string script_ = std::string(LORASHARD_SOURCE_DIR) + "/tests/support/two_hosts.sh";
  const std::string name_ = "lorashard" + std::to_string(::getpid()) + "-";
};

TEST_F(TwoHosts, TrainAndAStaleCopyOnOneIsNamed) {
  if (IsSkipped()) return;
  const Outcome done = test::run(train({}));
  ASSERT_EQ(done.status, 0) << done.text();
  EXPECT_EQ(lines_with(done.err, "note: ").size(), 0u) << done.text();
  const std::vector<double> found = losses(scene_.run, 8);
  for (size_t i = 0; i < found.size(); ++i) {
    const double expected = scene_.expected.at("steps")[i].at("loss");
    EXPECT_NEAR(found[i], expected, 2e-4 * expected);
  }

  fs::remove_all(scene_.run);
  write_file(scene_.dir / "stale", read_file(scene_.data) + "\n");
  Command stale = train({});
  stale.environment["STALE_FILE"] = scene_.data;
  stale.environment["STALE_COPY"] = scene_.dir / "stale";
  expect_one_error(test::run(stale), 2, scene_.data,
                   {"is another file on rank 1 on host nodeb", "than on rank 0 on host nodea"});
  EXPECT_FALSE(fs::exists(scene_.run));
}

TEST_F(TwoHosts, OneThatVanishesEndsTheJob) {
  if (IsSkipped()) return;
  Process job(train({"--set", "train.steps=1000000", "--set", "parallel.timeout_s=3"}));
  ASSERT_TRUE(job.wait_until([&] { return json_lines(scene_.run / "metrics.jsonl").size() >= 3; }))
      << job.wait().text();
  ASSERT_TRUE(hosts("cut", {}));
  const double cut = job.seconds();
  const Outcome done = job.wait();
  EXPECT_EQ(done.status, 3) << done.text();
  EXPECT_LT(done.seconds - cut, 3 + 30);  // measured: below 10, but machines are shared
  const std::string line = expect_one_error(done, 3, "rank 0 on host nodea");
  EXPECT_NE(line.find("in all_reduce \"lora_gradient\" of step "), std::string::npos) << line;
  EXPECT_NE(line.find("for rank 1 on host nodeb, silent for "), std::string::npos) << line;
  // Nobody is left on either host, which the end of each rank sees to itself.
  const auto left = [&] {
    return test::run({.arguments = {"ip", "netns", "pids", name_ + "b"}}).out +
           test::run({.arguments = {"ip", "netns", "pids", name_ + "a"}}).out;
  };
  while (!left().empty() && job.seconds() - cut < 3 + 30) ::usleep(100000);
  EXPECT_EQ(left(), "");
}

}  // namespace
}  // namespace lorashard::test
