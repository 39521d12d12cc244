// SPDX-License-Identifier: Apache-2.0
#include "key_sample.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "error.h"
#include "trace_file.h"

namespace quarry::tools {
namespace {

constexpr std::int64_t kRun = 64;  // positions that are held together where there are no blocks

/// A file is opened again for every pass, as a process has only so many.
TraceFile reopen(const std::string& path, const Trace& header) {
  TraceFile file(path);
  const Trace& now = file.header();
  if (now.n != header.n || now.hkv != header.hkv || now.hq != header.hq || now.d != header.d ||
      now.queries != header.queries || now.train_queries != header.train_queries ||
      now.k.dtype != header.k.dtype) {
    throw BadInput(printable(path) + ": changed while it was read");
  }
  return file;
}

/// The type in which a trace's keys are held.
DType held_dtype(const Trace& header) {
  return header.k.dtype == DType::float8_e4m3 ? DType::float32 : header.k.dtype;
}

std::int64_t key_row_bytes(const Trace& header) {
  return std::int64_t{header.hkv} * header.d * dtype_size(held_dtype(header));
}

/// Positions first .. first + count - 1 of k, as they are held.
void read_held(TraceFile& file, std::int64_t first, std::int64_t count, std::byte* out) {
  const Trace& header = file.header();
  if (header.k.dtype != DType::float8_e4m3) return file.read_keys(first, count, out);
  constexpr std::int64_t kPart = 256;
  const std::int64_t row = std::int64_t{header.hkv} * header.d;
  std::vector<std::byte> bytes(static_cast<std::size_t>(kPart * row));
  std::vector<float> values(bytes.size());
  for (std::int64_t done = 0; done < count; done += kPart) {
    const std::int64_t some = std::min(count - done, kPart);
    file.read_keys(first + done, some, bytes.data());
    widen_keys(header, bytes.data(), some, values.data());
    const auto size = static_cast<std::size_t>(some * row) * sizeof(float);
    std::memcpy(out, values.data(), size);
    out += size;
  }
}

/// The blocks of a trace that may be held: whole, and without a position that is not encoded.
struct Blocks {
  std::int64_t first, size, count;  // position of the first, positions of each

  Blocks(const IndexerConfig& c, std::int64_t n) {
    size = c.block_size > 0 ? c.block_size : kRun;
    first = c.encode_from;
    if (c.block_size > 0) first = (first + size - 1) / size * size;
    count = std::max<std::int64_t>(n - first, 0) / size;
  }
};

void add_view(const Trace& shape, KeySample* out) {
  const TypedArray& array = out->arrays.back();
  const std::int64_t row = std::int64_t{shape.hkv} * shape.d;
  CalibrationTrace view;
  view.keys = {array.bytes.data(), array.dtype,
               static_cast<std::int64_t>(array.bytes.size()) / (row * dtype_size(array.dtype)), row,
               shape.d};
  out->views.push_back(std::move(view));
}

void read_whole(const std::vector<std::string>& paths, const std::vector<Trace>& headers,
                KeySample* out) {
  for (std::size_t t = 0; t < paths.size(); ++t) {
    TypedArray array;
    array.dtype = held_dtype(headers[t]);
    array.bytes.resize(static_cast<std::size_t>(headers[t].n * key_row_bytes(headers[t])));
    TraceFile file = reopen(paths[t], headers[t]);
    read_held(file, 0, headers[t].n, array.bytes.data());
    out->arrays.push_back(std::move(array));
    add_view(headers[t], out);
  }
}

void read_some(const IndexerConfig& c, const std::vector<std::string>& paths,
               const std::vector<Trace>& headers, std::int64_t keep, std::int64_t total,
               KeySample* out) {
  // Calls visit(trace, first position) of block i * total / keep of all traces', for every i.
  const auto for_each = [&](auto visit) {
    std::int64_t i = 0, before = 0;
    for (std::size_t t = 0; t < headers.size(); ++t) {
      const Blocks blocks(c, headers[t].n);
      for (; i < keep && i * total / keep < before + blocks.count; ++i) {
        visit(t, blocks.first + (i * total / keep - before) * blocks.size);
      }
      before += blocks.count;
    }
  };
  const std::int64_t size = Blocks(c, 0).size;
  std::array<TypedArray, 3> arrays;  // by dtype
  std::array<std::size_t, 3> bytes{};
  const auto block_bytes = [&](std::size_t t) {
    return static_cast<std::size_t>(size * key_row_bytes(headers[t]));
  };
  for_each([&](std::size_t t, std::int64_t) {
    bytes[static_cast<std::size_t>(held_dtype(headers[t]))] += block_bytes(t);
  });
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    arrays[i].dtype = static_cast<DType>(i);
    arrays[i].bytes.resize(bytes[i]);
  }
  std::array<std::size_t, 3> at{};
  std::vector<TraceFile> file;  // the one that is open
  std::size_t open = headers.size();
  for_each([&](std::size_t t, std::int64_t position) {
    if (open != t) {
      file.clear();
      file.push_back(reopen(paths[t], headers[t]));
      open = t;
    }
    const auto dtype = static_cast<std::size_t>(held_dtype(headers[t]));
    read_held(file.front(), position, size, arrays[dtype].bytes.data() + at[dtype]);
    at[dtype] += block_bytes(t);
  });
  for (TypedArray& array : arrays) {
    if (array.empty()) continue;
    out->arrays.push_back(std::move(array));
    add_view(headers.front(), out);
  }
}

}  // namespace

Trace load_header(const std::string& path) {
  TraceFile file(path);
  file.read_positions(nullptr);
  return file.header();
}

KeySample read_keys(const IndexerConfig& config, const std::vector<std::string>& paths,
                    const std::vector<Trace>& headers, std::int64_t max_keys) {
  KeySample out;
  std::int64_t positions = 0, blocks = 0;
  const std::int64_t whole_block = std::max(config.block_size, 1);
  for (const Trace& header : headers) {
    positions += header.n;
    blocks += Blocks(config, header.n).count;
    out.trace_keys +=
        std::max<std::int64_t>(header.n / whole_block * whole_block - config.encode_from, 0);
  }
  out.whole = positions <= max_keys;
  if (out.whole) {
    out.encode_from = config.encode_from;
    read_whole(paths, headers, &out);
    return out;
  }
  const std::int64_t size = Blocks(config, 0).size;
  if (max_keys < size) {
    throw BadInput("--max-keys is " + std::to_string(max_keys) + ", must be at least " +
                   std::to_string(size) + ", the positions of a block");
  }
  const std::int64_t keep = std::min(blocks, max_keys / size);
  if (keep == 0) throw BadInput("the traces hold no whole block of encoded keys");
  read_some(config, paths, headers, keep, blocks, &out);
  return out;
}

QueryMoments read_query_moments(const IndexerConfig& config, const std::vector<std::string>& paths,
                                const std::vector<Trace>& headers) {
  QueryMoments out;
  check(QueryMoments::create(config, &out), "calibration");
  std::vector<std::byte> part;
  for (std::size_t t = 0; t < paths.size(); ++t) {
    TraceFile file = reopen(paths[t], headers[t]);
    const Trace& header = file.header();
    const std::int64_t row = std::int64_t{header.hq} * header.d;
    const auto add = [&](std::int64_t count, DType dtype, auto read) {
      const std::int64_t row_bytes = row * dtype_size(dtype);
      const std::int64_t most = std::max<std::int64_t>(kQueryPartBytes / row_bytes, 1);
      for (std::int64_t first = 0; first < count; first += most) {
        const std::int64_t rows = std::min(count - first, most);
        part.resize(static_cast<std::size_t>(rows * row_bytes));
        (file.*read)(first, rows, part.data());
        check(out.add({part.data(), dtype, rows, row, header.d}, first + rows == count),
              "calibration");
      }
    };
    add(header.train_queries, header.q_train.dtype, &TraceFile::read_train_queries);
    add(header.queries, header.q.dtype, &TraceFile::read_queries);
  }
  return out;
}

}  // namespace quarry::tools
