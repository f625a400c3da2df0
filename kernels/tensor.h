// Non-owning views of dense row-major matrices, the only thing that kernels take.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lorashard {

// Storage types. F32, BF16 and F16 are what base models hold; sizes in bytes by size_of().
enum class DType : uint8_t { F32, BF16, F16, F64, I8, U8, I16, I32, I64, BOOL };

constexpr int64_t size_of(DType t) {
  switch (t) {
    case DType::F32:
    case DType::I32:
      return 4;
    case DType::BF16:
    case DType::F16:
    case DType::I16:
      return 2;
    case DType::F64:
    case DType::I64:
      return 8;
    case DType::I8:
    case DType::U8:
    case DType::BOOL:
      return 1;
  }
  return 0;
}
// The names of the safetensors format: "F32", "BF16", …
constexpr std::string_view name_of(DType t) {
  switch (t) {
    case DType::F32:
      return "F32";
    case DType::BF16:
      return "BF16";
    case DType::F16:
      return "F16";
    case DType::F64:
      return "F64";
    case DType::I8:
      return "I8";
    case DType::U8:
      return "U8";
    case DType::I16:
      return "I16";
    case DType::I32:
      return "I32";
    case DType::I64:
      return "I64";
    case DType::BOOL:
      return "BOOL";
  }
  return "?";
}

// A read-only matrix: element (i, j) lies at data + (i * ld + j) * size_of(dtype). ld >= cols.
struct ConstMatrix {
  const void* data = nullptr;
  int64_t rows = 0, cols = 0, ld = 0;
  DType dtype = DType::F32;

  const char* at(int64_t i, int64_t j) const {
    return static_cast<const char*>(data) + (i * ld + j) * size_of(dtype);
  }
  // Rows [r, r + n) and columns [c, c + m) of this matrix.
  ConstMatrix block(int64_t r, int64_t n, int64_t c, int64_t m) const {
    return {at(r, c), n, m, ld, dtype};
  }
  ConstMatrix row_range(int64_t r, int64_t n) const { return block(r, n, 0, cols); }
  ConstMatrix col_range(int64_t c, int64_t m) const { return block(0, rows, c, m); }
  explicit operator bool() const { return data != nullptr; }
};

// A writable matrix of the same form.
struct Matrix {
  void* data = nullptr;
  int64_t rows = 0, cols = 0, ld = 0;
  DType dtype = DType::F32;

  char* at(int64_t i, int64_t j) const {
    return static_cast<char*>(data) + (i * ld + j) * size_of(dtype);
  }
  Matrix block(int64_t r, int64_t n, int64_t c, int64_t m) const {
    return {at(r, c), n, m, ld, dtype};
  }
  Matrix row_range(int64_t r, int64_t n) const { return block(r, n, 0, cols); }
  Matrix col_range(int64_t c, int64_t m) const { return block(0, rows, c, m); }
  operator ConstMatrix() const { return {data, rows, cols, ld, dtype}; }
  explicit operator bool() const { return data != nullptr; }
};

// A contiguous matrix over `data`.
inline Matrix matrix(void* data, int64_t rows, int64_t cols, DType t) {
  return {data, rows, cols, cols, t};
}
inline ConstMatrix const_matrix(const void* data, int64_t rows, int64_t cols, DType t) {
  return {data, rows, cols, cols, t};
}

}  // namespace lorashard
