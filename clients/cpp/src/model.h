/// 3. Models as the contract describes them: digests, descriptions, manifests and chunks; and what a task is. The
/// contract's messages are this client's values, so that nothing is copied to and fro.
#pragma once

#include <absl/strings/escaping.h>
#include <absl/strings/str_join.h>
#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string_view>

#include "basics.h"
#include "fedstream/v1/negotiation.pb.h"
#include "fedstream/v1/transfer.pb.h"
#include "own.pb.h"

namespace fedstream::client {

using Entry = v1::TensorEntry;
using Schema = google::protobuf::RepeatedPtrField<v1::TensorSpec>;
using Manifest = google::protobuf::RepeatedPtrField<Entry>;

// Bounds of the contract, in bytes where nothing else is said.
constexpr int kMaxTensors = 65'536, kMaxTensorsPerPart = 1'000, kMaxAxes = 32;
constexpr std::uint64_t kMaxModelBytes = std::uint64_t{64} << 30;
constexpr std::uint64_t kDefaultChunkBytes = 1 << 20, kMaxChunkBytes = 4'128'768, kDefaultWindowBytes = 4 << 20;
constexpr std::size_t kMaxNameBytes = 256;

/// The 32 bytes of the SHA-256 of `data`.
inline std::string sha256(std::string_view data) {
  std::string digest(32, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(data.data()), data.size(),
         reinterpret_cast<unsigned char*>(digest.data()));
  return digest;
}

/// Lower-case hexadecimal digits.
inline std::string hex(std::string_view data) { return absl::BytesToHexString({data.data(), data.size()}); }

/// CRC-32C (Castagnoli), which neither zlib nor OpenSSL has.
inline std::uint32_t crc32c(std::string_view data) {
  static const auto kTable = [] {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t index = 0; index < 256; ++index) {
      table[index] = index;
      for (int bit = 0; bit < 8; ++bit) table[index] = (table[index] >> 1) ^ ((table[index] & 1) != 0 ? 0x82f63b78 : 0);
    }
    return table;
  }();
  std::uint32_t crc = 0xffffffff;
  for (const unsigned char byte : data) crc = kTable[(crc ^ byte) & 0xff] ^ (crc >> 8);
  return crc ^ 0xffffffff;
}

/// Canonical name and size of an element type, by its number in the contract; one that is not known has neither.
struct ElementType {
  const char* name;
  std::uint64_t bytes;
};
inline ElementType element_type(v1::DataType type) {
  constexpr ElementType kTypes[] = {{"", 0},    {"BOOL", 1}, {"I8", 1},  {"I16", 2}, {"I32", 4},
                                    {"I64", 8}, {"U8", 1},   {"U16", 2}, {"U32", 4}, {"U64", 8},
                                    {"F16", 2}, {"BF16", 2}, {"F32", 4}, {"F64", 8}};
  return kTypes[type > 0 && std::size_t(type) < std::size(kTypes) ? type : 0];
}

/// Name, element type and shape, with TABs between.
inline std::string described(const v1::TensorSpec& spec) {
  return spec.name() + '\t' + element_type(spec.dtype()).name + '\t' + absl::StrJoin(spec.shape(), ",");
}

/// The canonical descriptions of a schema (R-SCH-2), of a meaning and of a model (R-MOD-1).
inline std::string canonical_schema(const Schema& schema) {
  std::string text = "fedstream schema v1\n";
  for (const auto& spec : schema) {
    text += described(spec) + (spec.trainable() ? "\ttrainable" : "\tfrozen") +
            (spec.role() == v1::TENSOR_ROLE_STATISTIC ? "\tstatistic\n" : "\tweight\n");
  }
  return text;
}
inline std::string canonical_meaning(const v1::TaskMeaning& meaning) {
  return "fedstream meaning v1\n" + absl::StrJoin(meaning.class_names(), "\t") + '\n' + meaning.positive_class() +
         '\n' + meaning.preprocessing() + '\n';
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

/// The entry of a tensor with these raw values.
inline Entry entry_of(const v1::TensorSpec& spec, std::string_view values) {
  Entry entry;
  *entry.mutable_spec() = spec;
  *entry.mutable_digest() = digest_of(values);
  entry.set_encoding(v1::ENCODING_RAW);
  entry.set_encoded_size_bytes(values.size());
  return entry;
}

/// Bytes of a tensor's values; none if its spec is out of bounds (R-SCH-3, R-SCH-4).
inline std::optional<std::uint64_t> size_of(const v1::TensorSpec& spec) {
  const auto& name = spec.name();
  bool is_sound =
      !name.empty() && name.size() <= kMaxNameBytes && name != "__metadata__" && spec.shape_size() <= kMaxAxes;
  for (std::size_t at = 0; at < name.size(); ++at) {  // control characters would break a line of a description
    const auto byte = static_cast<unsigned char>(name[at]), next = static_cast<unsigned char>(name.c_str()[at + 1]);
    is_sound = is_sound && byte >= 0x20 && byte != 0x7f && !(byte == 0xc2 && next < 0xa0);
  }
  std::uint64_t size = element_type(spec.dtype()).bytes, bound = size;
  if (!is_sound || size == 0) return std::nullopt;
  for (const auto length : spec.shape()) {
    if (length > kMaxModelBytes / bound) return std::nullopt;
    bound *= std::max<std::uint64_t>(length, 1);  // an axis of length 0 does not excuse the others
    size *= length;
  }
  return bound <= kMaxModelBytes ? std::optional(size) : std::nullopt;
}

/// @throws Trouble an entry of a manifest from the network breaks a rule (R-MOD-3, R-MOD-4)
inline void check_entry(const Entry& entry) {
  const auto size = size_of(entry.spec());
  if (size && entry.digest().sha256().size() == 32 && entry.digest().size_bytes() == *size &&
      entry.encoding() == v1::ENCODING_RAW && entry.encoded_size_bytes() == *size)
    return;
  throw Trouble("the manifest's tensor " + entry.spec().name().substr(0, 80) + " is not sound");
}

/// @throws Trouble the manifest is not sound, or of another model or schema (R-DL-1)
inline void check_manifest(const Manifest& manifest, const Schema& schema, const std::string& sha256) {
  for (const auto& entry : manifest) check_entry(entry);
  const auto is_of = [](const Entry& entry, const v1::TensorSpec& spec) {
    return described(entry.spec()) == described(spec);
  };
  if (!std::equal(manifest.begin(), manifest.end(), schema.begin(), schema.end(), is_of)) {
    throw Trouble("the manifest is of another schema");
  }
  if (model_digest(manifest).sha256() != sha256) throw Trouble("the manifest is not of the model that was asked for");
}

/// A manifest in parts within the bounds of the contract; one at least. Sound entries of one part are below
/// MAX_PART_BYTES too.
inline std::vector<v1::ManifestPart> manifest_parts(const Manifest& manifest) {
  std::vector<v1::ManifestPart> parts(1);
  for (const auto& entry : manifest) {
    if (parts.back().entries_size() == kMaxTensorsPerPart) parts.emplace_back();
    *parts.back().add_entries() = entry;
  }
  return parts;
}

inline v1::Chunk make_chunk(std::uint64_t offset, std::string_view data) {
  v1::Chunk chunk;
  chunk.set_write_offset(offset);
  chunk.set_crc32c(crc32c(data));
  chunk.set_data(data.data(), data.size());
  return chunk;
}

/// What is new in a chunk for a receiver that has `have` of `body` bytes, by R-CH-1 to R-CH-5.
/// @throws Trouble it breaks one of them
inline std::string_view new_in_chunk(const v1::Chunk& chunk, std::uint64_t have, std::uint64_t body,
                                     std::uint64_t most) {
  const std::string_view data = chunk.data();
  const auto offset = chunk.write_offset();
  const auto where = "the chunk at " + std::to_string(offset);
  if (data.size() > std::min(most, kMaxChunkBytes)) throw Trouble(where + " is larger than was agreed");
  if (crc32c(data) != chunk.crc32c()) throw Trouble(where + " was damaged on its way");
  if (offset > have) throw Trouble(where + " leaves bytes out: " + std::to_string(have) + " are here");
  if (offset > body || data.size() > body - offset) throw Trouble(where + " reaches past the end of the body");
  return data.substr(std::min<std::uint64_t>(have - offset, data.size()));
}

// --- The task ---

/// What the client asks of a task, so that another model is another file; the one that there is stands in ../task.
struct Task {
  std::string name;
  Schema schema;
  v1::TaskMeaning meaning;
  std::uint64_t num_examples;
  bool synthetic;
  /// Makes the values of each tensor of the schema, and of the header `num_examples`, `epochs` and `metrics`. The same
  /// base, plan and data give the same bytes. @throws Dropped it was cancelled
  std::function<Model(const Model& base, const v1::Plan& plan, const std::function<void(const v1::Progress&)>& report,
                      const Cancel& cancel)>
      fine_tune;
};
using Settings = std::map<std::string, std::string>;
/// Opens the site's data. @throws Stop the data cannot be used
using OpenTask = std::function<Task(const Settings& settings, const std::filesystem::path& data)>;

}  // namespace fedstream::client
