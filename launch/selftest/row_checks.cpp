// Kernels over rows and elements, look-ups, dropout, and dequantising.
#include <cmath>

#include "kernels/columns.h"
#include "kernels/dequantize.h"
#include "kernels/dora.h"
#include "kernels/dropout.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/rows.h"
#include "launch/selftest/kernel_checks.h"
#include "launch/selftest/operand.h"

namespace lorashard::selftest {
namespace {

using Parts = std::vector<Part>;

struct Shape {
  int64_t rows, cols, pad;
};
constexpr Shape kShapes[] = {{3, 64, 0}, {5, 37, 3}, {1, 1, 0}};

Parts converted(Stream& s, DType type) {
  Parts parts;
  for (const auto& [r, c, pad] : kShapes)
    for (DType from : {DType::F32, DType::BF16, DType::F16}) {
      Operand y(s, r, c, type, 1, pad), x(s, r, c, from, 2, pad);
      convert(s, y, x);
      parts.push_back(y.against([&](int64_t i, int64_t j) { return x(i, j); }));
    }
  return parts;
}

Parts zeroed(Stream& s, DType type) {
  Parts parts;
  for (const auto& [r, c, pad] : kShapes) {
    Operand y(s, r, c, type, 1, pad);
    fill_zero(s, y);
    parts.push_back(y.against([](int64_t, int64_t) { return 0; }));
  }
  return parts;
}

Parts added(Stream& s, DType type) {
  Parts parts;
  for (const auto& [r, c, pad] : kShapes) {
    Operand y(s, r, c, type, 1, pad), a(s, r, c, type, 2), b(s, r, c, type, 3, pad);
    add(s, y, a, b);
    parts.push_back(y.against([&](int64_t i, int64_t j) { return a(i, j) + b(i, j); }));
  }
  return parts;
}

Parts biased(Stream& s, DType type) {
  Parts parts;
  for (const auto& [r, c, pad] : kShapes) {
    Operand y(s, r, c, type, 1, pad), bias(s, 1, c, DType::BF16, 2);
    add_bias(s, y, bias);
    parts.push_back(y.against([&](int64_t i, int64_t j) { return y(i, j) + bias(0, j); }));
  }
  return parts;
}

Parts scaled(Stream& s, DType type) {
  Parts parts;
  for (const auto& [r, c, pad] : kShapes) {
    Operand y(s, r, c, type, 1, pad);
    scale(s, y, 0.3f);
    parts.push_back(y.against([&](int64_t i, int64_t j) { return y(i, j) * double(0.3f); }));
  }
  return parts;
}

Parts column_sums(Stream& s, DType type) {
  Parts parts;
  for (const bool products : {false, true})
    for (const auto& [r, c, pad] : kShapes) {
      Operand sums(s, 1, c, DType::F32, 1), x(s, r, c, type, 2, pad), y(s, r, c, type, 3);
      add_column_sums(s, sums, x, products ? ConstMatrix(y) : ConstMatrix{});
      parts.push_back(sums.against([&](int64_t, int64_t j) {
        double sum = sums(0, j);
        for (int64_t i = 0; i < x.rows(); ++i) sum += x(i, j) * (products ? y(i, j) : 1);
        return sum;
      }));
    }
  return parts;
}

Parts columns_scaled(Stream& s, DType type) {
  Parts parts;
  for (const bool accumulate : {false, true})
    for (const auto& [r, c, pad] : kShapes) {
      Operand y(s, r, c, type, 1, pad), x(s, r, c, type, 2), factors(s, 1, c, DType::F32, 3);
      scale_columns(s, y, x, factors, accumulate);
      parts.push_back(y.against([&](int64_t i, int64_t j) {
        return (accumulate ? y(i, j) : 0) + x(i, j) * factors(0, j);
      }));
    }
  return parts;
}

Parts squared_rows(Stream& s, DType type) {
  Parts parts;
  for (const auto& [r, c, pad] : kShapes) {
    Operand squares(s, 1, r, DType::F32, 1), w(s, r, c, type, 2, pad);
    row_squares(s, squares, w);
    parts.push_back(squares.against([&](int64_t, int64_t n) {
      double sum = 0;
      for (int64_t k = 0; k < w.cols(); ++k) sum += w(n, k) * w(n, k);
      return sum;
    }));
  }
  return parts;
}

Parts dora_squared(Stream& s, DType) {
  Parts parts;
  constexpr float kScaling = 0.5f;
  for (const auto& [r, n, pad] : kShapes) {
    Operand squares(s, 1, n, DType::F32, 1), base(s, 1, n, DType::F32, 2),
        p(s, r, n, DType::F32, 3, pad), b(s, n, r, DType::F32, 4), gram(s, r, r, DType::F32, 5);
    dora_squares(s, squares, base, p, b, gram, kScaling);
    parts.push_back(squares.against([&](int64_t, int64_t j) {
      double sum = base(0, j);
      for (int64_t i = 0; i < p.rows(); ++i) {
        sum += 2 * kScaling * b(j, i) * p(i, j);
        for (int64_t k = 0; k < p.rows(); ++k)
          sum += kScaling * kScaling * b(j, i) * gram(i, k) * b(j, k);
      }
      return sum;
    }));
  }
  return parts;
}

Parts dora_scaled(Stream& s, DType) {
  Parts parts;
  for (const auto& [r, n, pad] : kShapes) {
    Operand scale(s, 1, n, DType::F32, 1), excess(s, 1, n, DType::F32, 2),
        inverse(s, 1, n, DType::F32, 3), squares(s, 1, n, DType::F32, 4),
        magnitude(s, 1, n, DType::F32, 5);
    squares.fill([](int64_t, int64_t j) { return 1 + double(j % 7); });
    dora_scales(s, scale, excess, inverse, squares, magnitude);
    const auto norm = [&](int64_t j) { return std::sqrt(squares(0, j)); };
    parts.push_back(scale.against([&](int64_t, int64_t j) { return magnitude(0, j) / norm(j); }));
    parts.push_back(
        excess.against([&](int64_t, int64_t j) { return magnitude(0, j) / norm(j) - 1; }));
    parts.push_back(inverse.against([&](int64_t, int64_t j) { return 1 / norm(j); }));
  }
  return parts;
}

Parts gathered(Stream& s, DType type) {
  Parts parts;
  for (const auto& [r, c, pad] : kShapes) {
    Operand y(s, 3, c, type, 1, pad), x(s, r, c, type, 2, pad);
    Numbers<int32_t> rows(s, {int32_t(r - 1), 0, int32_t(r / 2)});
    gather_rows(s, y, x, rows.device());
    parts.push_back(y.against([&](int64_t i, int64_t j) { return x(rows[i], j); }));
  }
  return parts;
}

Parts scattered(Stream& s, DType type) {
  Parts parts;
  for (const auto& [r, c, pad] : kShapes) {
    Operand y(s, r + 4, c, type, 1, pad), x(s, 2, c, type, 2, pad);
    Numbers<int32_t> rows(s, {int32_t(r + 2), 1});
    scatter_rows(s, y, x, rows.device());
    parts.push_back(y.against([&](int64_t i, int64_t j) {
      return i == rows[0] ? x(0, j) : i == rows[1] ? x(1, j) : 0;
    }));
  }
  return parts;
}

Parts embedded(Stream& s, DType type) {
  Parts parts;
  constexpr int64_t kFirst = 4, kVocabulary = 11;
  for (const auto& [r, c, pad] : kShapes) {
    Operand y(s, 5, c, type, 1, pad), table(s, kVocabulary, c, DType::BF16, 2);
    Numbers<int32_t> ids(s, {4, 0, 14, 9, 15});  // of them 0 and 15 are other ranks'
    embedding_forward(s, y, ids.device(), table, kFirst, 1.5f);
    parts.push_back(y.against([&](int64_t i, int64_t j) {
      const int64_t row = ids[i] - kFirst;
      return row >= 0 && row < kVocabulary ? 1.5 * table(row, j) : 0;
    }));
  }
  return parts;
}

Parts embedding_added(Stream& s, DType type) {
  Parts parts;
  constexpr int64_t kFirst = 4, kVocabulary = 11;
  for (const auto& [r, c, pad] : kShapes) {
    Operand table(s, kVocabulary, c, DType::F32, 1, pad), dy(s, 6, c, type, 2);
    Numbers<int32_t> ids(s, {4, 0, 9, 14, 9, 15});  // of them 0 and 15 are other ranks'
    embedding_backward(s, table, ids.device(), dy, kFirst, 0.5f);
    parts.push_back(table.against([&](int64_t i, int64_t j) {
      double sum = table(i, j);
      for (int64_t t = 0; t < 6; ++t) sum += ids[t] == kFirst + i ? 0.5 * dy(t, j) : 0;
      return sum;
    }));
  }
  return parts;
}

// Columns that come back as they were put, and leave zeros.
Parts columns_moved(Stream& s) {
  Parts parts;
  for (const auto& [r, c, pad] : kShapes) {
    Operand y(s, r, c, DType::F32, 1, pad), x(s, r, 2, DType::F32, 2, pad),
        taken(s, r, 2, DType::F32, 3);
    Numbers<int32_t> cols(s, {int32_t(4 + c - 1), 3});  // the second is another rank's
    put_columns(s, y, x, cols.device(), 4);
    parts.push_back(
        y.against([&](int64_t i, int64_t j) { return j == c - 1 ? x(i, 0) : y(i, j); }));
    take_columns(s, taken, y, cols.device(), 4);
    parts.push_back(taken.against([&](int64_t i, int64_t j) { return j == 0 ? x(i, 0) : 0; }));
    parts.push_back(y.against([&](int64_t i, int64_t j) { return j == c - 1 ? 0 : y(i, j); }));
  }
  return parts;
}

Parts dropped(Stream& s, DType type) {
  Parts parts;
  constexpr uint64_t kSeed = 7;
  constexpr uint32_t kSite = 3;
  constexpr int64_t kFirst = 6;
  constexpr float kP = 0.25f;
  for (const bool accumulate : {false, true})
    for (const auto& [r, c, pad] : kShapes) {
      Operand y(s, r, c, type, 1, pad), x(s, r, c, type, 2, pad);
      std::vector<uint64_t> tokens;
      for (int64_t i = 0; i < r; ++i) tokens.push_back(1000 + uint64_t(i) * 17);
      Numbers<uint64_t> keys(s, tokens);
      dropout(s, y, x, kSeed, kSite, keys.device(), kFirst, kP, accumulate);
      parts.push_back(y.against([&](int64_t i, int64_t j) {
        const auto column = uint64_t(kFirst + j);
        const auto words =
            random_words(kSeed, Purpose::Dropout, keys[i], (uint64_t{kSite} << 32) + column / 4);
        const bool kept = uniform01(words[column % 4]) >= kP;
        return (accumulate ? y(i, j) : 0) + (kept ? x(i, j) / (1 - kP) : 0);
      }));
    }
  return parts;
}

Parts from_nf4(Stream& s, DType type) {
  Parts parts;
  for (const bool nested : {false, true})
    for (const auto& [r, c, pad] : kShapes) {
      std::mt19937_64 engine(5);
      const int64_t n = r * c, blocks = (n + kNf4Block - 1) / kNf4Block;
      std::vector<uint8_t> bytes(size_t(n + 1) / 2), maximum_codes;
      for (uint8_t& b : bytes) b = uint8_t(engine());
      std::vector<float> maxima, levels, scales{1.25f};
      for (int64_t b = 0; b < blocks; ++b) {
        maxima.push_back(0.5f + float(b));
        maximum_codes.push_back(uint8_t(engine()));
      }
      for (int i = 0; i < 256; ++i) levels.push_back(float(i - 127) / 128);
      Operand y(s, r, c, type, 1, pad);
      Numbers<uint8_t> codes(s, bytes), absmax_codes(s, maximum_codes);
      Numbers<float> absmax(s, maxima), absmax_levels(s, levels), absmax_scales(s, scales);
      Nf4Matrix w;
      w.codes = codes.device();
      w.rows = r;
      w.cols = w.ld = c;
      w.absmax_offset = nested ? 2 : 0;
      if (nested) {
        w.absmax_codes = absmax_codes.device();
        w.absmax_levels = absmax_levels.device();
        w.absmax_scales = absmax_scales.device();
      } else {
        w.absmax = absmax.device();
      }
      dequantize_nf4(s, y, w);
      parts.push_back(y.against([&](int64_t i, int64_t j) {
        const int64_t e = i * c + j, b = e / kNf4Block;
        const int code = e % 2 == 0 ? codes[e / 2] >> 4 : codes[e / 2] & 15;
        const double maximum =
            nested ? double(levels[absmax_codes[b]]) * absmax_scales[0] + 2 : absmax[b];
        return kNf4Levels[code] * maximum;
      }));
    }
  return parts;
}

Parts from_int8(Stream& s, DType type) {
  Parts parts;
  for (const auto& [r, c, pad] : kShapes) {
    std::mt19937_64 engine(5);
    std::vector<int8_t> values;
    for (int64_t i = 0; i < r * c; ++i) values.push_back(int8_t(engine()));
    Operand y(s, r, c, type, 1, pad), scales(s, 1, r, DType::F32, 2);
    Numbers<int8_t> codes(s, values);
    dequantize_int8(s, y, const_matrix(codes.device(), r, c, DType::I8), scales.floats());
    parts.push_back(
        y.against([&](int64_t i, int64_t j) { return codes[i * c + j] * scales(0, i); }));
  }
  return parts;
}

}  // namespace

void add_row_checks(std::vector<KernelCheck>& checks) {
  const std::pair<const char*, Parts (*)(Stream&, DType)> kAll[] = {
      {"convert", converted},
      {"fill_zero", zeroed},
      {"add", added},
      {"add_bias", biased},
      {"scale", scaled},
      {"add_column_sums", column_sums},
      {"scale_columns", columns_scaled},
      {"row_squares", squared_rows},
      {"dora_squares", dora_squared},
      {"dora_scales", dora_scaled},
      {"gather_rows", gathered},
      {"scatter_rows", scattered},
      {"embedding_forward", embedded},
      {"embedding_backward", embedding_added},
      {"dropout", dropped},
      {"dequantize_nf4", from_nf4},
      {"dequantize_int8", from_int8}};
  for (const auto& [name, run] : kAll)
    for (DType type : {DType::F32, DType::BF16})
      checks.push_back(
          {name, type, rounded_once(type), [run = run, type](Stream& s) { return run(s, type); }});
  checks.push_back({"put_columns, take_columns", DType::F32, rounded_once(DType::F32),
                    [](Stream& s) { return columns_moved(s); }});
}

}  // namespace lorashard::selftest
