// SPDX-License-Identifier: Apache-2.0
//
// The GGUF's own tokenizer: byte-level BPE (Sennrich et al. 2016; GPT-2's bytes as letters)
// behind SmolLM's pre-tokenizer, which stands every digit alone.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gguf.h"

namespace quarry::smollm2 {

/// ASCII text as words that no merge may cross: single digits, then GPT-2's rule (an
/// apostrophe's ending, a run of letters or of signs with one space before it, white space).
/// Throws BadInput at a byte past ASCII: Unicode's letter classes are not here.
std::vector<std::string_view> split_words(std::string_view text);

class Tokenizer {
 public:
  /// `tokens` in GPT-2's alphabet of printable code points, `merges` as "left right", the
  /// first the most urgent. Throws BadInput where a merge names no token.
  Tokenizer(const std::vector<std::string>& tokens, const std::vector<std::string>& merges);
  /// Throws BadInput where the file's tokenizer is another.
  explicit Tokenizer(const GgufFile& file);

  /// No token is added in front; what looks like a control token is text. Throws BadInput.
  std::vector<std::int32_t> encode(std::string_view text) const;
  /// Bytes of a token; of one that is not text, its name.
  std::string decode(std::int32_t token) const;

  std::size_t size() const noexcept { return tokens_.size(); }

 private:
  struct Merge {
    std::int32_t rank, token;
  };
  void append_word(std::string_view word, std::vector<std::int32_t>* out) const;

  std::vector<std::string> tokens_;
  std::array<std::int32_t, 256> byte_tokens_;        // -1: the vocabulary has no such byte
  std::unordered_map<std::uint64_t, Merge> merges_;  // left << 32 | right
};

}  // namespace quarry::smollm2
