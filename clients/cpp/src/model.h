/// 3. Models as the contract describes them: digests, descriptions, manifests and chunks; and what a task is. The
/// contract's messages are this client's values, so that nothing is copied to and fro.
#pragma once

#include <absl/strings/escaping.h>
#include <absl/strings/str_join.h>
#include <absl/strings/str_replace.h>
#include <openssl/sha.h>

#include <functional>
#include <optional>

#include "calls.h"
#include "fedstream/v1/negotiation.pb.h"
#include "fedstream/v1/transfer.pb.h"
#include "own.pb.h"

namespace fedstream::client {

using Schema = google::protobuf::RepeatedPtrField<v1::TensorSpec>;
using Manifest = google::protobuf::RepeatedPtrField<v1::TensorEntry>;

// Of the contract.
constexpr std::uint32_t kProtocol = 1;
constexpr std::uint64_t kDefaultChunkBytes = 1 << 20, kMaxChunkBytes = 4'128'768, kDefaultWindowBytes = 4 << 20;

/// The 32 bytes of the SHA-256 of `data`.
inline std::string sha256(std::string_view data) {
  std::string digest(32, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(data.data()), data.size(),
         reinterpret_cast<unsigned char*>(digest.data()));
  return digest;
}

/// Lower-case hexadecimal digits.
inline std::string hex(std::string_view data) { return absl::BytesToHexString({data.data(), data.size()}); }

/// CRC-32C (Castagnoli), which neither zlib nor OpenSSL has. Bit by bit it keeps up with a gigabit line.
inline std::uint32_t crc32c(std::string_view data) {
  std::uint32_t crc = 0xffffffff;
  for (const unsigned char byte : data) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78 : 0);
  }
  return crc ^ 0xffffffff;
}

/// Canonical name of an element type, such as F32 for DATA_TYPE_FLOAT32.
inline std::string canonical_name(v1::DataType type) {
  return absl::StrReplaceAll(v1::DataType_Name(type),
                             {{"DATA_TYPE_", ""}, {"FLOAT", "F"}, {"UINT", "U"}, {"INT", "I"}});
}

/// Bytes of a tensor's values; the name of each type, but for BOOL, ends with its bits.
inline std::uint64_t size_of(const v1::TensorSpec& spec) {
  const auto name = canonical_name(spec.dtype());
  std::uint64_t size = name == "BOOL" ? 1 : std::stoul(name.substr(name.find_first_of("0123456789"))) / 8;
  for (const auto length : spec.shape()) size *= length;
  return size;
}

/// Name, element type and shape, with TABs between.
inline std::string described(const v1::TensorSpec& spec) {
  return spec.name() + '\t' + canonical_name(spec.dtype()) + '\t' + absl::StrJoin(spec.shape(), ",");
}

/// The canonical descriptions of a schema (R-SCH-2) and of a model (R-MOD-1).
inline std::string canonical_schema(const Schema& schema) {
  std::string text = "fedstream schema v1\n";
  for (const auto& spec : schema) {
    text += described(spec) + (spec.trainable() ? "\ttrainable" : "\tfrozen") +
            (spec.role() == v1::TENSOR_ROLE_STATISTIC ? "\tstatistic\n" : "\tweight\n");
  }
  return text;
}
inline std::string canonical_model(const Manifest& manifest) {
  std::string text = "fedstream model v1\n";
  for (const auto& entry : manifest) text += described(entry.spec()) + '\t' + hex(entry.digest().sha256()) + '\n';
  return text;
}

inline v1::Digest digest_of(std::string_view bytes) {
  v1::Digest digest;
  digest.set_sha256(sha256(bytes));
  digest.set_size_bytes(bytes.size());
  return digest;
}

/// The digest that names a model.
inline v1::Digest model_digest(const Manifest& manifest) { return digest_of(canonical_model(manifest)); }

/// @param model has the values of each tensor of the schema
inline Manifest manifest_of(const Schema& schema, const Model& model) {
  Manifest manifest;
  for (int at = 0; at < schema.size(); ++at) {
    auto& entry = *manifest.Add();
    *entry.mutable_spec() = schema[at];
    *entry.mutable_digest() = digest_of(model.values(at));
    entry.set_encoding(v1::ENCODING_RAW);
    entry.set_encoded_size_bytes(model.values(at).size());
  }
  return manifest;
}

/// Whether a manifest from the network is that of the model (R-DL-1, R-MOD-3 to R-MOD-5). What is of our own schema has
/// sound names, shapes and sizes.
inline bool is_manifest_of(const std::string& model_sha256, const Manifest& manifest, const Schema& schema) {
  const auto fits = [](const v1::TensorEntry& entry, const v1::TensorSpec& spec) {
    return described(entry.spec()) == described(spec) && entry.digest().sha256().size() == 32 &&
           entry.digest().size_bytes() == size_of(spec) && entry.encoding() == v1::ENCODING_RAW &&
           entry.encoded_size_bytes() == size_of(spec);
  };
  return std::equal(manifest.begin(), manifest.end(), schema.begin(), schema.end(), fits) &&
         model_digest(manifest).sha256() == model_sha256;
}

inline v1::Chunk make_chunk(std::uint64_t offset, std::string_view data) {
  v1::Chunk chunk;
  chunk.set_write_offset(offset);
  chunk.set_crc32c(crc32c(data));
  chunk.set_data(data.data(), data.size());
  return chunk;
}

/// What is new in a chunk for a receiver that has `have` of `body` bytes, by R-CH-1 to R-CH-5. @throws Trouble
inline std::string_view new_in_chunk(const v1::Chunk& chunk, std::uint64_t have, std::uint64_t body,
                                     std::uint64_t most) {
  const std::string_view data = chunk.data();
  const auto offset = chunk.write_offset();
  const bool is_sound = data.size() <= std::min(most, kMaxChunkBytes) && crc32c(data) == chunk.crc32c() &&
                        offset <= have && data.size() <= body - offset;
  if (!is_sound) throw Trouble("the chunk at " + std::to_string(offset) + " is damaged, too large or out of place");
  return data.substr(std::min<std::uint64_t>(have - offset, data.size()));
}

/// A model as a `.safetensors` file: eight bytes of header length, a header in JSON, and the tensors' bytes.
inline std::string safetensors(const Schema& schema, const Model& model) {
  Json header;
  std::string body;
  for (int at = 0; at < schema.size(); ++at) {
    const auto from = body.size();
    body += model.values(at);
    header[schema[at].name()] = {{"dtype", canonical_name(schema[at].dtype())},
                                 {"shape", schema[at].shape()},
                                 {"data_offsets", {from, body.size()}}};
  }
  auto text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + text + body;
}

/// What the client asks of a task, so that another model is another file; the one that there is stands in ../task.
struct Task {
  Schema schema;  // of sound tensors (R-SCH-3, R-SCH-4), 1,000 at most, so that a manifest fits one part
  v1::TaskMeaning meaning;
  std::uint64_t num_examples;
  bool synthetic;
  /// Makes the values of each tensor of the schema, and of the header `num_examples`, `epochs` and `metrics`. The same
  /// base, plan and data give the same bytes. @throws Dropped it was cancelled
  std::function<Model(const Model& base, const v1::Plan& plan, const std::function<void(const v1::Progress&)>& report,
                      const Effort& effort)>
      fine_tune;
};
using Settings = std::map<std::string, std::string>;
/// Opens the site's data. @throws Stop the data cannot be used
using OpenTask = std::function<Task(const Settings& settings, const fs::path& data)>;

}  // namespace fedstream::client
