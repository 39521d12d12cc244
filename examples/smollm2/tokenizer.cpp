// SPDX-License-Identifier: Apache-2.0
#include "tokenizer.h"

#include "error.h"

namespace quarry::smollm2 {
namespace {

using tools::BadInput;
using tools::printable;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_sign(char c) { return !is_digit(c) && !is_letter(c) && !is_space(c); }

/// Bytes of the word that starts `text`, which holds no digit and ends where a digit or the
/// whole text's end follows.
std::size_t word_length(std::string_view text) {
  for (const std::string_view ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
    if (text.substr(0, ending.size()) == ending) return ending.size();
  }
  const std::size_t start = text[0] == ' ' ? 1 : 0;
  for (const auto member : {is_letter, is_sign}) {
    std::size_t end = start;
    while (end < text.size() && member(text[end])) ++end;
    if (end > start) return end;
  }
  std::size_t end = 0;
  while (end < text.size() && is_space(text[end])) ++end;
  // The last space before a word is the word's.
  return end < text.size() && end > 1 ? end - 1 : end;
}

std::string utf8(std::uint32_t code) {
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
}

/// GPT-2's code point for each byte: itself where it is printable in Latin-1, else the next
/// free one from 256 on.
std::array<std::string, 256> byte_letters() {
  std::array<std::string, 256> out;
  std::uint32_t next = 256;
  for (std::uint32_t b = 0; b < 256; ++b) {
    const bool own = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    out[b] = utf8(own ? b : next++);
  }
  return out;
}

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
}

}  // namespace

std::vector<std::string_view> split_words(std::string_view text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (static_cast<unsigned char>(text[i]) < 0x80) continue;
    throw BadInput("text: byte " + std::to_string(i) + " is not ASCII, which alone is split");
  }
  std::vector<std::string_view> words;
  while (!text.empty()) {
    std::size_t run = 0;
    while (run < text.size() && !is_digit(text[run])) ++run;
    for (std::string_view rest = text.substr(0, run); !rest.empty();) {
      words.push_back(rest.substr(0, word_length(rest)));
      rest.remove_prefix(words.back().size());
    }
    text.remove_prefix(run);
    if (text.empty()) break;
    words.push_back(text.substr(0, 1));
    text.remove_prefix(1);
  }
  return words;
}

Tokenizer::Tokenizer(const std::vector<std::string>& tokens, const std::vector<std::string>& merges)
    : tokens_(tokens) {
  if (tokens.size() > INT32_MAX || merges.size() > INT32_MAX) {
    throw BadInput("tokenizer: more than 2^31 tokens or merges");
  }
  std::unordered_map<std::string_view, std::int32_t> ids;
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    ids.emplace(tokens_[i], static_cast<std::int32_t>(i));
  }
  const auto find = [&](std::string_view token) {
    const auto it = ids.find(token);
    return it == ids.end() ? -1 : it->second;
  };
  const std::array<std::string, 256> letters = byte_letters();
  for (std::size_t b = 0; b < 256; ++b) byte_tokens_[b] = find(letters[b]);

  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const std::string& line = merges[rank];
    const std::size_t space = line.find(' ');
    const bool two = space != std::string::npos;
    const std::int32_t left = two ? find(std::string_view(line).substr(0, space)) : -1;
    const std::int32_t right = two ? find(std::string_view(line).substr(space + 1)) : -1;
    const std::int32_t both = two ? find(line.substr(0, space) + line.substr(space + 1)) : -1;
    if (left < 0 || right < 0 || both < 0) {
      throw BadInput("tokenizer: merge " + std::to_string(rank) + ", '" + printable(line) +
                     "', is not of two tokens to a third");
    }
    merges_.emplace(pair_key(left, right), Merge{static_cast<std::int32_t>(rank), both});
  }
}

Tokenizer::Tokenizer(const GgufFile& file)
    : Tokenizer(file.texts("tokenizer.ggml.tokens"), file.texts("tokenizer.ggml.merges")) {
  const auto must_be = [&](const char* key, const char* value) {
    if (file.text(key) == value) return;
    file.refuse(std::string(key) + " is '" + printable(file.text(key)) + "', '" + value +
                "' is what is built");
  };
  must_be("tokenizer.ggml.model", "gpt2");
  must_be("tokenizer.ggml.pre", "smollm");
}

void Tokenizer::append_word(std::string_view word, std::vector<std::int32_t>* out) const {
  std::vector<std::int32_t> parts;
  for (const char c : word) {
    const std::int32_t token = byte_tokens_[static_cast<unsigned char>(c)];
    if (token < 0) {
      throw BadInput("text: the vocabulary has no byte " +
                     std::to_string(static_cast<unsigned char>(c)));
    }
    parts.push_back(token);
  }
  for (;;) {
    std::size_t best = parts.size();
    Merge merge{INT32_MAX, 0};
    for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto it = merges_.find(pair_key(parts[i], parts[i + 1]));
      if (it == merges_.end() || it->second.rank >= merge.rank) continue;
      best = i;
      merge = it->second;
    }
    if (best == parts.size()) break;
    parts[best] = merge.token;
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  out->insert(out->end(), parts.begin(), parts.end());
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> out;
  for (const std::string_view word : split_words(text)) append_word(word, &out);
  return out;
}

std::string Tokenizer::decode(std::int32_t token) const {
  if (token < 0 || static_cast<std::size_t>(token) >= tokens_.size()) return {};
  const std::string& name = tokens_[static_cast<std::size_t>(token)];
  static const std::array<std::string, 256> letters = byte_letters();
  std::string out;
  for (std::size_t at = 0; at < name.size();) {
    const std::size_t width = static_cast<unsigned char>(name[at]) < 0x80 ? 1 : 2;
    const std::string letter = name.substr(at, width);
    std::size_t b = 0;
    while (b < 256 && letters[b] != letter) ++b;
    if (b == 256) return name;
    out += static_cast<char>(b);
    at += width;
  }
  return out;
}

}  // namespace quarry::smollm2
