// SPDX-License-Identifier: Apache-2.0
//
// save() and restore(): what comes back is what went, on the same backend, the other one and
// another cache layout; and bytes that are not what save() wrote are refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "checksum.h"
#include "saved.h"
#include "support/backends.h"
#include "support/scenario.h"

namespace quarry::test {
namespace {

using Bytes = std::vector<std::uint8_t>;

class Restore : public BackendTest {};

struct Case {
  const char* name;
  void (*change)(Scenario&);
};

const Case kCases[] = {
    {"shared", [](Scenario& s) { s.config.shared_codebook = true; }},
    {"own", [](Scenario&) {}},
    {"block", [](Scenario& s) { s.config.block_size = 16; }},
    {"pages", [](Scenario& s) { use_pages(&s.config, 5); }},
    {"block_half_pages",
     [](Scenario& s) {
       s.config.block_size = 16;
       s.config.mean_dtype = DType::bfloat16;
       s.config.encode_from = 5;
       use_pages(&s.config, 8);
     }},
    {"everything",
     [](Scenario& s) {
       s.config.block_size = 16;
       s.config.mean_dtype = DType::float16;
       s.config.metric = Metric::inner_product;
       s.config.rotation = true;
       s.config.refine_factor = 2;
       s.config.max_query_tokens = 3;
       use_pages(&s.config, 48);
     }},
    {"odd_subspaces",
     [](Scenario& s) {
       s.config.head_dim = 24;
       s.config.num_subspaces = 3;
       s.config.bits = 3;
     }},
    {"wide_codes",
     [](Scenario& s) {
       s.config.bits = 7;
       s.config.shared_codebook = true;
       s.config.block_size = 4;
     }},
};

Scenario scenario(const Case& c, Backend backend) {
  Scenario s;
  s.backend = backend;
  s.config = small_config();
  s.config.max_sequences = 2;
  s.config.window_size = 24;
  s.config.max_seq_len = 260;
  c.change(s);
  return s;
}

HostBatch drafts(int n, int tokens) {
  HostBatch b;
  b.batch_size = 2;
  b.query_tokens = tokens;
  for (const int first : {n, std::max(n - 40, 0)}) {
    for (int t = 0; t < tokens; ++t) b.lengths.push_back(first + t);
  }
  return b;
}

/// The same bytes with the checksum they should have.
Bytes sealed(Bytes bytes) {
  constexpr std::size_t kAt = 24;
  std::fill_n(bytes.begin() + kAt, 8, std::uint8_t{0});
  Checksum sum;
  sum.update(bytes.data(), bytes.size());
  const std::uint64_t value = sum.value();
  std::memcpy(bytes.data() + kAt, &value, 8);
  return bytes;
}

std::uint64_t number(const Bytes& bytes, std::size_t at, int size) {
  std::uint64_t v = 0;
  for (int i = 0; i < size; ++i) v |= static_cast<std::uint64_t>(bytes[at + i]) << (8 * i);
  return v;
}

TEST_P(Restore, GoesOnAsIfNothingHadHappened) {
  for (const Case& c : kCases) {
    for (const int n : {4, 200}) {
      const Scenario s = scenario(c, GetParam());
      const int tokens = s.config.max_query_tokens;
      World world(s), fresh(s);
      const bool shared = s.config.shared_codebook;
      world.set_codebook(-1);
      if (shared) fresh.set_codebook(-1);
      world.next(drafts(n, tokens));
      const World::Saved saved[] = {world.save(0), world.save(1)};
      for (int slot = 0; slot < 2; ++slot) {
        ASSERT_TRUE(saved[slot].status.ok()) << saved[slot].status.detail();
        EXPECT_EQ(saved[slot].bytes.size(), world.indexer().saved_bytes(saved[slot].oracle.seen));
        SavedSequence info;
        ASSERT_TRUE(read_saved(saved[slot].bytes.data(), saved[slot].bytes.size(), &info).ok());
        EXPECT_EQ(info.length, saved[slot].oracle.seen);
        EXPECT_EQ(info.has_codebook, !shared);
        const Status r = fresh.restore(slot, saved[slot].bytes, &saved[slot].oracle);
        ASSERT_TRUE(r.ok()) << r.detail();
        EXPECT_NE(fresh.indexer().codebook_id(slot), 0u);
        // The restored slot saves the same bytes.
        EXPECT_TRUE(fresh.save(slot).bytes == saved[slot].bytes) << c.name;
      }
      // Both go on: keys before those not seen are NaN for either. Then a rejected draft is
      // rewritten in both, in the middle of a block.
      std::vector<StepOutput> outputs[2];
      int of = 0;
      for (World* w : {&world, &fresh}) {
        outputs[of].push_back(w->next(drafts(n + 1, tokens)));
        for (int slot = 0; slot < 2; ++slot) w->overwrite(slot, std::max(n - 39, 1), 260, 77);
        w->truncate({0, 1}, {std::max(n - 39, 1), std::max(n - 39, 1)});
        outputs[of].push_back(w->next(drafts(n + 2, tokens)));
        outputs[of++].push_back(w->next(drafts(n + 50, tokens)));
      }
      ASSERT_EQ(world.error(), "") << c.name << " n " << n;
      ASSERT_EQ(fresh.error(), "") << c.name << " n " << n;
      EXPECT_TRUE(outputs[0] == outputs[1]) << c.name << " n " << n;
      EXPECT_TRUE(world.codes(0, n + 50) == fresh.codes(0, n + 50));
    }
  }
}

TEST_P(Restore, BackendsAndPagesDoNotShowInTheBytes) {
  for (const Case& c : kCases) {
    Scenario s = scenario(c, GetParam());
    World world(s);
    s.backend = Backend::cpu;
    s.config.page_size = 0;
    s.config.num_pages = 0;
    World plain(s);
    for (World* w : {&world, &plain}) {
      w->set_codebook(-1);
      w->next(drafts(200, 1));
    }
    const World::Saved a = world.save(0), b = plain.save(0);
    ASSERT_TRUE(a.status.ok() && b.status.ok());
    EXPECT_TRUE(a.bytes == b.bytes) << c.name;
    // Across: each goes on from the other's bytes.
    ASSERT_TRUE(world.restore(0, b.bytes, &b.oracle).ok());
    ASSERT_TRUE(plain.restore(0, a.bytes, &a.oracle).ok());
    world.next(drafts(201, 1));
    plain.next(drafts(201, 1));
    EXPECT_TRUE(world.codes(0, 201) == plain.codes(0, 201)) << c.name;
    ASSERT_EQ(world.error(), "") << c.name;
    ASSERT_EQ(plain.error(), "") << c.name;
  }
}

TEST_P(Restore, TheFormatIsTheDocumentedOne) {
  const Scenario s = scenario(kCases[5], GetParam());
  World world(s);
  world.set_codebook(-1);
  world.next(drafts(200, 1));
  const Bytes b = world.save(0).bytes;
  ASSERT_GT(b.size(), 136u);
  EXPECT_EQ(std::string(b.begin(), b.begin() + 8), "QUARRYSQ");
  EXPECT_EQ(number(b, 8, 4), 1u);
  EXPECT_EQ(number(b, 12, 4), 136u);
  EXPECT_EQ(number(b, 16, 8), b.size());
  // Hkv, d, m, b, metric, block, mean, rotation, encode_from, codebook, length, reserved.
  const std::uint32_t fields[] = {2, 32, 2, 4, 1, 16, 1, 1, 8, 1, 200, 0};
  for (int i = 0; i < 12; ++i) EXPECT_EQ(number(b, 40 + 4 * i, 4), fields[i]) << i;
  // 192 - 8 positions of 2 heads, 1 byte each; 12 blocks; codebooks of dsub + 1.
  const std::uint64_t sections[] = {184 * 2,   12 * 2 * 32 * 2, 2 * 2 * 16 * 17 * 4,
                                    2 * 2 * 4, 2 * 32 * 32 * 4, 2 * 32 * 32 * 4};
  std::size_t at = 136;
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(number(b, 88 + 8 * i, 8), sections[i]) << i;
    if (i == 0) {
      const Bytes codes = world.codes(0, 192);  // [position][head][m]
      for (std::size_t k = 0; k < 184 * 2; ++k) {
        ASSERT_EQ(b[at + k], codes[2 * k] | codes[2 * k + 1] << 4) << k;
      }
    }
    if (i == 2) {
      const Codebook cb = world.make_codebook(7);
      EXPECT_EQ(std::memcmp(b.data() + at, cb.centroids.data(), sections[i]), 0);
      EXPECT_EQ(std::memcmp(b.data() + at + sections[2], cb.phi.data(), sections[3]), 0);
      EXPECT_EQ(
          std::memcmp(b.data() + at + sections[2] + sections[3], cb.rotation.data(), sections[4]),
          0);
    }
    at += sections[i];
  }
  EXPECT_EQ(at, b.size());
  EXPECT_TRUE(sealed(b) == b);
}

TEST_P(Restore, AShorterLengthIsAPrefix) {
  for (const int block : {0, 16}) {
    Scenario s = scenario(kCases[0], GetParam());
    s.config.block_size = block;
    World world(s), fresh(s);
    for (World* w : {&world, &fresh}) w->set_codebook(-1);
    world.next(drafts(200, 1));
    const World::Saved part = world.save(0, 90);
    ASSERT_EQ(part.bytes.size(), world.indexer().saved_bytes(90));
    ASSERT_TRUE(fresh.restore(0, part.bytes, &part.oracle).ok());
    fresh.overwrite(0, 90, 260, 12);
    fresh.next(drafts(91, 1));
    fresh.next(drafts(140, 1));
    EXPECT_EQ(fresh.error(), "");
    EXPECT_EQ(world.save(0, 260).oracle.seen, 200);
  }
}

TEST_P(Restore, ACodebookThatIsThereKeepsItsId) {
  Scenario s = scenario(kCases[5], GetParam());
  World world(s);
  world.set_codebook(-1, 1);
  world.next(drafts(200, 1));
  const World::Saved saved = world.save(0);
  const std::uint64_t id = world.indexer().codebook_id(0);
  ASSERT_TRUE(world.restore(0, saved.bytes, &saved.oracle).ok());
  EXPECT_EQ(world.indexer().codebook_id(0), id);
  // Another codebook is replaced, under a new id.
  world.set_codebook(0, 2);
  const std::uint64_t second = world.indexer().codebook_id(0);
  ASSERT_TRUE(world.restore(0, saved.bytes, &saved.oracle).ok());
  EXPECT_NE(world.indexer().codebook_id(0), second);
  EXPECT_NE(world.indexer().codebook_id(0), id);
  EXPECT_TRUE(world.read_codebook(0).centroids == world.make_codebook(1).centroids);
  std::vector<std::uint32_t> bits;
  ASSERT_TRUE(world.attach({0}, {200}, world.indexer().codebook_id(0), &bits).ok());
  EXPECT_EQ(bits[0], 0u);
  world.next(drafts(201, 1));
  EXPECT_EQ(world.error(), "");
}

TEST_P(Restore, WhatDoesNotFitIsRefusedByName) {
  const Scenario s = scenario(kCases[6], GetParam());  // 3 subspaces, 3 bits
  World world(s);
  world.set_codebook(-1);
  world.next(drafts(200, 1));
  const World::Saved saved = world.save(0);
  ASSERT_TRUE(saved.status.ok());
  struct Change {
    const char* named;
    std::function<void(Bytes&)> change;
    bool seal = true;
  };
  const auto put = [](std::size_t at, std::uint32_t value) {
    return [=](Bytes& b) { std::memcpy(b.data() + at, &value, 4); };
  };
  const auto put64 = [](std::size_t at, std::uint64_t value) {
    return [=](Bytes& b) { std::memcpy(b.data() + at, &value, 8); };
  };
  const std::size_t size = saved.bytes.size();
  const Change changes[] = {
      {"bytes is", [](Bytes& b) { b.clear(); }, false},
      {"bytes is", [](Bytes& b) { b.resize(135); }, false},
      {"total_bytes", [](Bytes& b) { b.pop_back(); }},
      {"total_bytes", [](Bytes& b) { b.push_back(0); }},
      {"magic", [](Bytes& b) { b[0] = 'q'; }},
      {"version", put(8, 2)},
      {"version", put(8, 0)},
      {"header_bytes", put(12, 128)},
      {"header_bytes", put(12, 0xffffffff)},
      {"total_bytes", put64(16, ~std::uint64_t{0})},
      {"checksum", [](Bytes& b) { b[30] ^= 1; }, false},
      {"checksum", [](Bytes& b) { b.back() ^= 0x80; }, false},
      {"codebook_hash", [](Bytes& b) { b[33] ^= 4; }},
      {"codebook_hash", [](Bytes& b) { b.back() ^= 1; }},
      {"num_kv_heads", put(40, 3)},
      {"head_dim", put(44, 32)},
      {"num_subspaces", put(48, 0)},
      {"bits", put(52, 4)},
      {"metric", put(56, 1)},
      {"block_size", put(60, 16)},
      {"mean_dtype", put(64, 1)},
      {"rotation", put(68, 1)},
      {"encode_from", put(72, 7)},
      {"has_codebook", put(76, 2)},
      {"section_bytes", put(76, 0)},
      {"length", put(80, 261)},
      {"length", put(80, 0x80000000)},
      {"section_bytes", put(80, 199)},
      {"section_bytes", put(80, 0)},
      {"reserved", put(84, 1)},
      {"sections", put64(88, 0)},
      {"section_bytes", put64(88, ~std::uint64_t{0})},
      {"section_bytes", put64(128, std::uint64_t{1} << 63)},
      {"sections", put64(104, 0)},
      {"code of position 8 ", [](Bytes& b) { b[136] = 0x08; }},
      {"code of position 8 ", [](Bytes& b) { b[136] = 0x80; }},
      {"code of position 8 ", [](Bytes& b) { b[137] = 0x17; }},  // the half byte
      {"code of position 9 ", [](Bytes& b) { b[136 + 4] = 0x08; }},
  };
  world.set_codebook(1, 5);
  world.next(drafts(201, 1));
  const Bytes before = world.save(1).bytes;
  const std::uint64_t id = world.indexer().codebook_id(1);
  for (const Change& c : changes) {
    Bytes bytes = saved.bytes;
    c.change(bytes);
    if (c.seal) bytes = sealed(bytes);
    const Status status = world.restore(1, bytes, nullptr);
    EXPECT_FALSE(status.ok()) << c.named;
    EXPECT_NE(std::string(status.detail()).find(c.named), std::string::npos)
        << c.named << ": " << status.detail();
    EXPECT_TRUE(world.save(1).bytes == before) << c.named << ": something changed";
    EXPECT_EQ(world.indexer().codebook_id(1), id) << c.named;
  }
  EXPECT_EQ(size, saved.bytes.size());
  ASSERT_TRUE(world.restore(1, saved.bytes, nullptr).ok());
}

TEST_P(Restore, SharedCodebooksMustBeTheOneThatEncoded) {
  const Scenario s = scenario(kCases[0], GetParam());
  World world(s), another(s), none(s);
  world.set_codebook(-1, 1);
  another.set_codebook(-1, 2);
  world.next(drafts(200, 1));
  another.next(drafts(200, 1));
  const World::Saved saved = world.save(0);
  const Status refused = another.restore(0, saved.bytes, nullptr);
  EXPECT_EQ(refused.code(), StatusCode::invalid_argument);
  EXPECT_NE(std::string(refused.detail()).find("codebook_hash"), std::string::npos);
  EXPECT_EQ(none.restore(0, saved.bytes, nullptr).code(), StatusCode::not_built);
  EXPECT_EQ(none.save(0).status.code(), StatusCode::not_built);
  another.next(drafts(201, 1));
  EXPECT_EQ(another.error(), "");
  // Bytes that bring their codebook fit where it is the shared one, and the other way round.
  Scenario own = s;
  own.config.shared_codebook = false;
  World brings(own);
  brings.set_codebook(-1, 1);
  brings.next(drafts(200, 1));
  const World::Saved with = brings.save(0);
  ASSERT_TRUE(world.restore(1, with.bytes, nullptr).ok());
  EXPECT_FALSE(another.restore(1, with.bytes, nullptr).ok());
  ASSERT_TRUE(brings.restore(1, saved.bytes, nullptr).ok());
  brings.set_codebook(1, 3);
  EXPECT_FALSE(brings.restore(1, saved.bytes, nullptr).ok());
}

TEST_P(Restore, ABadBlockTableIsRefused) {
  Scenario s = scenario(kCases[3], GetParam());
  World world(s);
  world.set_codebook(-1);
  world.next(drafts(200, 1));
  const World::Saved saved = world.save(0);
  const Pages good = world.pages(1);
  for (const int at : {1, 20, 39}) {
    for (const std::int32_t page : {-1, static_cast<std::int32_t>(s.config.num_pages)}) {
      world.pages(1)[at] = page;
      const Status status = world.restore(1, saved.bytes, nullptr);
      EXPECT_EQ(status.code(), StatusCode::out_of_range);
      EXPECT_NE(std::string(status.detail()).find("block_table entry " + std::to_string(at)),
                std::string::npos);
      EXPECT_EQ(world.save(1).status.code(), at < 32 ? StatusCode::out_of_range : StatusCode::ok);
    }
    world.pages(1) = good;
  }
  // Entries past the saved positions, or of sinks that are not encoded, are not looked at.
  world.pages(1)[0] = -1;
  world.pages(1)[40] = -1;
  EXPECT_TRUE(world.restore(1, saved.bytes, nullptr).ok());
}

// The checksum refuses whatever changed by chance. Where it is made to fit, the rest of the
// checks must do: what they let through must be harmless.
TEST_P(Restore, DamagedBytesNeverDoHarm) {
  Random random(2027);
  for (const int which : {2, 5, 6, 7}) {
    Scenario s = scenario(kCases[which], GetParam());
    s.check = false;
    World world(s);
    world.set_codebook(-1);
    world.next(drafts(200, 1));
    const World::Saved saved = world.save(0);
    int accepted = 0;
    for (int trial = 0; trial < 150; ++trial) {
      Bytes bytes = saved.bytes;
      const int kind = random.integer(0, 3);
      const int last = static_cast<int>(bytes.size()) - 1;
      if (kind == 0) bytes.resize(static_cast<std::size_t>(random.integer(0, last)));
      const int changes = random.integer(kind == 0 ? 0 : 1, 6);
      for (int i = 0; i < changes && !bytes.empty(); ++i) {
        const int end = static_cast<int>(bytes.size()) - 1;
        const int at = random.integer(0, kind == 1 ? std::min(135, end) : end);
        bytes[at] = static_cast<std::uint8_t>(bytes[at] ^ (1 + random.integer(0, 254)));
      }
      if (bytes == saved.bytes) continue;
      EXPECT_FALSE(world.restore(1, bytes, nullptr).ok());
      if (bytes.size() < 136) continue;
      if (random.integer(0, 1) == 0) {
        const std::uint64_t size = bytes.size();
        std::memcpy(bytes.data() + 16, &size, 8);
      }
      if (!world.restore(1, sealed(bytes), nullptr).ok()) continue;
      ++accepted;
      const StepOutput out = world.next(drafts(202, 1));
      ASSERT_TRUE(out.status.ok());
    }
    // Some do pass: a changed code is a code.
    if (which != 5) {
      EXPECT_GT(accepted, 0) << kCases[which].name;
    }
  }
}

TEST(Checksum, AnyCutGivesTheSameSumAndAnyByteAnother) {
  Random random(9);
  Bytes bytes(100);
  for (auto& b : bytes) b = static_cast<std::uint8_t>(random.integer(0, 255));
  const auto sum_of = [](const Bytes& b) {
    Checksum sum;
    sum.update(b.data(), b.size());
    return sum.value();
  };
  for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
    Checksum sum;
    sum.update(bytes.data(), cut / 2);
    sum.update(bytes.data() + cut / 2, cut - cut / 2);
    sum.update(bytes.data() + cut, bytes.size() - cut);
    ASSERT_EQ(sum.value(), sum_of(bytes)) << cut;
  }
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      Bytes changed = bytes;
      changed[at] = static_cast<std::uint8_t>(changed[at] ^ 1 << bit);
      ASSERT_NE(sum_of(changed), sum_of(bytes));
    }
  }
  Bytes longer = bytes;
  longer.push_back(0);
  EXPECT_NE(sum_of(longer), sum_of(bytes));
  // The format's sum of nothing and of 1, 2, .. 9: it must never change.
  EXPECT_EQ(sum_of({}), 0x47848a77c2953ad8u);
  EXPECT_EQ(sum_of({1, 2, 3, 4, 5, 6, 7, 8, 9}), 0x735f2a18b87ed4edu);
}

QUARRY_ON_EVERY_BACKEND(Restore);

}  // namespace
}  // namespace quarry::test
