// Operands of the self-test in the memory of a stream's device, with what was put there at hand.
#pragma once

#include <functional>
#include <random>
#include <vector>

#include "kernels/float_types.h"
#include "kernels/transfer.h"
#include "launch/selftest/compare.h"

namespace lorashard::selftest {

using Formula = std::function<double(int64_t, int64_t)>;

// A matrix of F32, BF16 or F16 with `pad` elements between its rows, of normal values. Results are
// so too before a kernel writes them: one that writes nothing is wrong.
class Operand {
 public:
  Operand(Stream& stream, int64_t rows, int64_t cols, DType type, uint64_t seed, int64_t pad = 0)
      : stream_(stream),
        rows_(rows),
        cols_(cols),
        ld_(cols + pad),
        type_(type),
        host_(size_t(rows * ld_ * size_of(type))),
        device_(stream, host_.size()) {
    std::mt19937_64 engine(seed);
    std::normal_distribution<double> normal;
    fill([&](int64_t, int64_t) { return normal(engine); });
  }
  Operand& fill(const Formula& value) {
    for (int64_t i = 0; i < rows_; ++i)
      for (int64_t j = 0; j < cols_; ++j)
        store_scalar(host_.data(), type_, i * ld_ + j, float(value(i, j)));
    copy_to_device(stream_, device_.data(), host_.data(), int64_t(host_.size()));
    return *this;
  }
  // The value that was put there.
  double operator()(int64_t i, int64_t j) const {
    return load_scalar(host_.data(), type_, i * ld_ + j);
  }
  // What stands there now, against a formula for it.
  Part against(const Formula& want) const {
    Part part;
    const std::vector<char> now =
        host_copy(stream_, static_cast<const char*>(device_.data()), int64_t(host_.size()));
    for (int64_t i = 0; i < rows_; ++i)
      for (int64_t j = 0; j < cols_; ++j) {
        part.got.push_back(load_scalar(now.data(), type_, i * ld_ + j));
        part.want.push_back(want(i, j));
      }
    return part;
  }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  float* floats() const { return device_.as<float>(); }
  operator Matrix() const { return {device_.data(), rows_, cols_, ld_, type_}; }
  operator ConstMatrix() const { return {device_.data(), rows_, cols_, ld_, type_}; }

 private:
  Stream& stream_;
  int64_t rows_, cols_, ld_;
  DType type_;
  std::vector<char> host_;
  Buffer device_;
};

// Integers for kernels to read: ids, labels, codes.
template <class T>
class Numbers {
 public:
  Numbers(Stream& stream, std::vector<T> values)
      : host_(std::move(values)), device_(stream, host_.size() * sizeof(T)) {
    copy_to_device(stream, device_.data(), host_.data(), int64_t(host_.size() * sizeof(T)));
  }
  T operator[](int64_t i) const { return host_[size_t(i)]; }
  const std::vector<T>& host() const { return host_; }
  T* device() const { return device_.template as<T>(); }

 private:
  std::vector<T> host_;
  Buffer device_;
};

}  // namespace lorashard::selftest
