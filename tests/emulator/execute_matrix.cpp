// SPDX-License-Identifier: Apache-2.0
// mma.sync and ldmatrix. Products are exact, a sum is taken in double and rounded once: as near to
// exact as any order of summation a GPU may use, but not its bits.
#include "decode.h"
#include "half.h"
#include "memory.h"

namespace quarry::emulator {
namespace {

constexpr unsigned kRows = 16;
constexpr unsigned kColumns = 8;

template <class F>
double half_at(uint32_t word, unsigned which) {
  return widen_fast(static_cast<uint16_t>(word >> (16 * which)), F{});
}

// sums [16, 8] += a [16, K] b [K, 8]. A product of halves is exact in double, so fused or not is
// one.
template <unsigned K>
inline __attribute__((always_inline)) void accumulate_rows(double (*sums)[kColumns],
                                                           const double (*a)[K],
                                                           const double (*b)[kColumns]) {
  typedef double Four __attribute__((vector_size(32)));  // NOLINT(modernize-use-using)
  for (unsigned row = 0; row < kRows; ++row) {
    Four low;
    Four high;
    std::memcpy(&low, sums[row], sizeof low);
    std::memcpy(&high, sums[row] + 4, sizeof high);
    for (unsigned k = 0; k < K; ++k) {
      Four b_low;
      Four b_high;
      std::memcpy(&b_low, b[k], sizeof b_low);
      std::memcpy(&b_high, b[k] + 4, sizeof b_high);
      low += a[row][k] * b_low;
      high += a[row][k] * b_high;
    }
    std::memcpy(sums[row], &low, sizeof low);
    std::memcpy(sums[row] + 4, &high, sizeof high);
  }
}

#if defined(__x86_64__)
template <unsigned K>
__attribute__((target("avx2"))) void accumulate_wide(double (*sums)[kColumns], const double (*a)[K],
                                                     const double (*b)[kColumns]) {
  accumulate_rows<K>(sums, a, b);
}
#endif

template <unsigned K>
void accumulate(double (*sums)[kColumns], const double (*a)[K], const double (*b)[kColumns]) {
#if defined(__x86_64__)
  static const bool wide = __builtin_cpu_supports("avx2") != 0;
  if (wide) return accumulate_wide<K>(sums, a, b);
#endif
  accumulate_rows<K>(sums, a, b);
}

// to: d[4]; from: a (K / 4 registers), b (K / 8), c (4). Lane l = 4 * g + t holds, of A, rows g
// and g + 8 at columns 2t, 2t + 1 (and 8 further); of B those rows of column g; of C and D rows g
// and g + 8 at columns 2t, 2t + 1.
template <class F, unsigned K>
void multiply(Warp& w, const Instruction& in, Mask /*lanes*/) {
  double a[kRows][K];
  double b[K][kColumns];
  constexpr unsigned a_registers = K / 4;
  constexpr unsigned b_registers = K / 8;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const unsigned g = lane / 4;
    const unsigned t = lane % 4;
    for (unsigned r = 0; r < a_registers; ++r) {
      const uint32_t word = w.in<uint32_t>(in.from[r])[lane];
      for (unsigned h = 0; h < 2; ++h) {
        a[g + 8 * (r % 2)][2 * t + h + 8 * (r / 2)] = half_at<F>(word, h);
      }
    }
    for (unsigned r = 0; r < b_registers; ++r) {
      const uint32_t word = w.in<uint32_t>(in.from[a_registers + r])[lane];
      for (unsigned h = 0; h < 2; ++h) b[2 * t + h + 8 * r][g] = half_at<F>(word, h);
    }
  }
  double sums[kRows][kColumns];
  const auto each_result = [](auto f) {
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      for (unsigned r = 0; r < 4; ++r) f(lane, r, lane / 4 + 8 * (r / 2), 2 * (lane % 4) + r % 2);
    }
  };
  each_result([&](unsigned lane, unsigned r, unsigned row, unsigned column) {
    sums[row][column] =
        std::bit_cast<float>(w.in<uint32_t>(in.from[a_registers + b_registers + r])[lane]);
  });
  accumulate<K>(sums, a, b);
  each_result([&](unsigned lane, unsigned r, unsigned row, unsigned column) {
    const auto out = static_cast<float>(sums[row][column]);
    w.out<uint32_t>(in.to[r])[lane] = out != out ? 0x7FFFFFFFu : std::bit_cast<uint32_t>(out);
  });
}

// Lane 8 * m + r names row r of matrix m: 8 halves.
template <Space S, bool Transposed>
void load_matrices(Warp& w, const Instruction& in, Mask lanes) {
  if (w.watch != 0)
    watch_access(w, in, lanes & static_cast<Mask>((uint64_t{1} << (8 * in.count)) - 1));
  uint16_t cells[4][8][8];
  for (unsigned i = 0; i < 8u * in.count; ++i) {
    std::memcpy(cells[i / 8][i % 8], address<S>(w, in, i, 0, 16), 16);
  }
  for (unsigned m = 0; m < in.count; ++m) {
    const auto& cell = cells[m];
    auto* d = w.out<uint32_t>(in.to[m]);
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      const unsigned row = lane / 4;
      const unsigned column = 2 * (lane % 4);
      const uint32_t low = Transposed ? cell[column][row] : cell[row][column];
      const uint32_t high = Transposed ? cell[column + 1][row] : cell[row][column + 1];
      d[lane] = low | (high << 16);
    }
  }
}

bool decode_ldmatrix(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  if (!op.take("sync") || !op.take("aligned") || !op.take("m8n8")) return false;
  if (op.types.size() != 1 || op.types[0].bits != 16) return false;
  in.count = op.take("x4") ? 4 : op.take("x2") ? 2 : op.take("x1") ? 1 : 0;
  const bool transposed = op.take("trans");
  in.space = take_space(op);
  d.expect(s, 2, 2);
  const auto parts = Decoder::parts(s.operands[0]);
  if (in.count == 0 || parts.size() != in.count) d.fail("matrices of ldmatrix");
  for (size_t k = 0; k < parts.size(); ++k) in.to[k] = d.destination(parts[k], 32);
  d.address(s.operands[1], in, 0);
  in.kind = Kind::collective;
  in.bytes = 16;
  in.access = Access::matrix;
  if (in.space == Space::shared) {
    in.run = transposed ? load_matrices<Space::shared, true> : load_matrices<Space::shared, false>;
  } else if (in.space == Space::generic) {
    in.run =
        transposed ? load_matrices<Space::generic, true> : load_matrices<Space::generic, false>;
  } else {
    d.fail("space of ldmatrix");
  }
  return true;
}

}  // namespace

bool decode_matrix(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  if (op.name == "ldmatrix") return decode_ldmatrix(d, s, op, in);
  if (op.name != "mma" || op.types.size() != 4) return false;
  if (!op.take("sync") || !op.take("aligned") || !op.take("row") || !op.take("col")) return false;
  const bool long_k = op.take("m16n8k16");
  if (!long_k && !op.take("m16n8k8")) return false;
  const Type f32{'f', 32, false};
  const Type b32{'b', 32, false};
  const auto is_single = [](Type t) { return t.kind == 'f' && t.bits == 32; };
  const char kind = op.types[1].kind;
  if (!is_single(op.types[0]) || !is_single(op.types[3]) || kind != op.types[2].kind ||
      op.types[1].bits != 16) {
    return false;
  }
  if (kind == 'h') {
    in.run = long_k ? multiply<Float16, 16> : multiply<Float16, 8>;
  } else {
    in.run = long_k ? multiply<BFloat16, 16> : multiply<BFloat16, 8>;
  }
  in.kind = Kind::collective;
  d.expect(s, 4, 4);
  const size_t sizes[] = {4, long_k ? 4u : 2u, long_k ? 2u : 1u, 4};
  size_t next = 0;
  for (size_t o = 0; o < 4; ++o) {
    const auto parts = Decoder::parts(s.operands[o]);
    if (parts.size() != sizes[o]) d.fail("registers of mma");
    for (size_t k = 0; k < parts.size(); ++k) {
      if (o == 0) {
        in.to[k] = d.destination(parts[k], 32);
      } else {
        in.from[next++] = d.source(parts[k], o == 3 ? f32 : b32);
      }
    }
  }
  return true;
}

}  // namespace quarry::emulator
