#include "checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace lorashard::test {
namespace {

class SafetensorsTest : public ::testing::Test {
 protected:
  // Writes length, header and `data` zero bytes.
  void write_raw(uint64_t length, const std::string& header, size_t data) {
    std::string text(8, '\0');
    std::memcpy(text.data(), &length, 8);
    text += header + std::string(data, '\0');
    std::ofstream(file_, std::ios::binary | std::ios::trunc) << text;
  }
  void write(const std::string& header, size_t data) { write_raw(header.size(), header, data); }
  void expect_refused(std::vector<std::string> parts) {
    parts.push_back(file_.string());
    expect_error(kExitInput, parts, [&] { SafetensorsFile::open(file_); });
  }
  TempDir dir_;
  fs::path file_ = dir_ / "x.safetensors";
};

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

TEST_F(SafetensorsTest, RoundTrip) {
  const std::vector<SafetensorsWriter::Entry> entries{{"b", DType::BF16, {3, 5}},
                                                      {"a", DType::F32, {7}},
                                                      {"none", DType::F32, {0, 4}},
                                                      {"scalar", DType::I64, {}}};
  std::string data(30 + 28 + 8, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i + 1);
  SafetensorsWriter out(file_, entries, {{"format", "pt"}, {"by", "lorashard"}});
  out.write(data.data(), 11);  // need not follow the tensors' borders
  out.write(data.data() + 11, data.size() - 11);
  out.close();
  EXPECT_EQ(out.sha256(), sha256_file(file_));
  const SafetensorsFile f = SafetensorsFile::open(file_);
  ASSERT_EQ(f.tensors().size(), 4u);
  EXPECT_EQ(f.tensors()[0].name, "b");
  EXPECT_EQ(f.tensors()[0].offset % 64, 0u);
  EXPECT_EQ(std::string(f.data(*f.find("a")), 28), data.substr(30, 28));
  EXPECT_EQ(f.find("b")->elements(), 15);
  EXPECT_EQ(f.find("scalar")->elements(), 1);
  EXPECT_EQ(f.find("none")->bytes, 0u);
  EXPECT_EQ(f.find("c"), nullptr);
  EXPECT_EQ(f.metadata(),
            (std::map<std::string, std::string>{{"format", "pt"}, {"by", "lorashard"}}));
  EXPECT_TRUE(f.aligned(*f.find("b")));
  EXPECT_FALSE(f.aligned(*f.find("a")));  // at byte 30
}

TEST_F(SafetensorsTest, WriterKeepsItsContract) {
  SafetensorsWriter out(file_, {{"a", DType::F32, {2}}});
  EXPECT_THROW(out.close(), std::logic_error);
  const float x[3] = {};
  EXPECT_THROW(out.write(x, 12), std::logic_error);
}

TEST_F(SafetensorsTest, TruncatedFiles) {
  std::ofstream(file_) << "abc";
  expect_refused({"truncated", "3 bytes"});
  std::ofstream(file_, std::ios::trunc) << "";
  expect_refused({"truncated"});
  write_raw(1000, "{}", 0);
  expect_refused({"truncated", "1000 bytes"});
  write_raw(UINT64_MAX, "{}", 0);
  expect_refused({"header would have 18446744073709551615 bytes"});
  write_raw(UINT64_MAX - 7, "{}", 0);
  expect_refused({"header would have"});
  write("{" + entry("t", "F32", "[4]", "[0,16]") + "}", 15);
  expect_refused({": t: ", "beyond the file's 15 bytes"});
}

TEST_F(SafetensorsTest, HeadersThatAreNoObject) {
  write("", 0);
  expect_refused({"not a JSON object"});
  write("[1,2]", 0);
  expect_refused({"not a JSON object"});
  write("{\"a\":", 0);
  expect_refused({"header", "not valid JSON"});
  write("{} x", 0);
  expect_refused({"not valid JSON"});
  write("{\"a\xff\":1}", 0);
  expect_refused({"not valid JSON"});
  write(std::string("{\"a\":") + std::string(100'000, '['), 0);
  expect_refused({"not valid JSON"});
  const std::string t = entry("t", "F32", "[1]", "[0,4]");
  write("{" + t + "," + t + "}", 4);
  expect_refused({"\"t\" is given twice"});
  write("{\"t\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4);
  expect_refused({"\"dtype\" is given twice"});
  write("{\"__metadata__\":{\"a\":1}}", 0);
  expect_refused({"__metadata__", "not a string"});
  write("{\"__metadata__\":[]}", 0);
  expect_refused({"not a map of strings"});
}

TEST_F(SafetensorsTest, LyingEntries) {
  const auto refuse = [&](const std::string& dtype, const std::string& shape,
                          const std::string& offsets, size_t data, std::vector<std::string> parts) {
    write("{" + entry("t", dtype, shape, offsets) + "}", data);
    parts.push_back(": t: ");
    expect_refused(parts);
  };
  refuse("F32", "[2]", "[8,0]", 8, {"reversed"});
  refuse("F32", "[2]", "[0,4]", 4, {"span 4 bytes", "takes 8"});
  refuse("F32", "[2]", "[0,800]", 8, {"beyond"});
  refuse("F32", "[2]", "[18446744073709551608,18446744073709551615]", 8, {"beyond"});
  refuse("F32", "[-2]", "[0,8]", 8, {"not a list of sizes"});
  refuse("F32", "[2.0]", "[0,8]", 8, {"not a list of sizes"});
  refuse("F32", "[18446744073709551615]", "[0,8]", 8, {"not a list of sizes"});
  refuse("F32", "[4294967296,4294967296,4294967296]", "[0,8]", 8, {"overflows"});
  refuse("F32", "[4611686018427387905]", "[0,4]", 4, {"overflows"});
  refuse("F32", "7", "[0,8]", 8, {"shape is not a list"});
  refuse("F32", "[2]", "[0]", 8, {"not a pair"});
  refuse("F32", "[2]", "[0,-8]", 8, {"not a pair"});
  refuse("F8_E4M3", "[8]", "[0,8]", 8, {"F8_E4M3 is not supported"});
  refuse("f32", "[2]", "[0,8]", 8, {"f32 is not supported"});
  write("{\"t\":7}", 0);
  expect_refused({": t: ", "not an object"});
  write("{\"t\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4);
  expect_refused({": t: ", "lacks data_offsets"});
  write("{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4);
  expect_refused({": t: ", "other than"});
  write("{\"a\\nb\":7}", 0);
  expect_refused({": a?b: "});  // one line whatever the name
}

TEST_F(SafetensorsTest, TensorsMustTileTheData) {
  write("{" + entry("a", "F32", "[2]", "[0,8]") + "," + entry("b", "F32", "[2]", "[4,12]") + "}",
        12);
  expect_refused({": b: ", "overlaps tensor a"});
  write("{" + entry("a", "F32", "[2]", "[0,8]") + "," + entry("b", "F32", "[2]", "[0,8]") + "}", 8);
  expect_refused({"overlaps tensor"});
  write("{" + entry("a", "F32", "[2]", "[0,8]") + "," + entry("b", "F32", "[2]", "[12,20]") + "}",
        20);
  expect_refused({": b: ", "hole of 4 bytes"});
  write("{" + entry("a", "F32", "[2]", "[4,12]") + "}", 12);
  expect_refused({": a: ", "hole of 4 bytes"});
  write("{" + entry("a", "F32", "[2]", "[0,8]") + "}", 9);
  expect_refused({"1 bytes after the last tensor"});
  write("{}", 5);
  expect_refused({"5 bytes after"});
  // Empty tensors lie between others without overlapping them.
  write("{" + entry("a", "F32", "[2]", "[0,8]") + "," + entry("e", "F32", "[0]", "[8,8]") + "," +
            entry("b", "F32", "[1]", "[8,12]") + "}",
        12);
  EXPECT_EQ(SafetensorsFile::open(file_).tensors().size(), 3u);
}

}  // namespace
}  // namespace lorashard::test
