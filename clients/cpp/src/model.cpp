#include "model.h"

#include <algorithm>
#include <sstream>

#include "digest.h"
#include "errors.h"
#include "limits.h"

namespace fedstream::client {
namespace {

struct ElementType {
  const char* name;
  std::uint64_t bytes;
};

/// Canonical name and size, by the number of the contract's DataType; a type that is not known has neither.
ElementType element_type(v1::DataType type) {
  constexpr ElementType kTypes[] = {{"", 0},    {"BOOL", 1}, {"I8", 1},  {"I16", 2}, {"I32", 4},
                                    {"I64", 8}, {"U8", 1},   {"U16", 2}, {"U32", 4}, {"U64", 8},
                                    {"F16", 2}, {"BF16", 2}, {"F32", 4}, {"F64", 8}};
  const bool is_known = type > 0 && static_cast<std::size_t>(type) < std::size(kTypes);
  return kTypes[is_known ? type : 0];
}

std::string shape_text(const Spec& spec) {
  std::string text;
  for (const auto length : spec.shape()) text += (text.empty() ? "" : ",") + std::to_string(length);
  return text;
}

/// Whether a tensor of this spec is within the bounds; if so, `size` is that of its values.
bool measure(const Spec& spec, std::uint64_t* size) {
  *size = element_type(spec.dtype()).bytes;
  if (*size == 0 || spec.shape_size() > limits::kMaxAxes) return false;
  std::uint64_t bound = *size;  // an axis of length 0 does not excuse the others
  for (const auto length : spec.shape()) {
    if (length > limits::kMaxModelBytes / bound) return false;
    bound *= std::max<std::uint64_t>(length, 1);
    *size *= length;
  }
  return bound <= limits::kMaxModelBytes;
}

bool is_same_tensor(const Spec& one, const Spec& other) {
  return one.name() == other.name() && one.dtype() == other.dtype() && shape_text(one) == shape_text(other);
}

v1::Digest digest_of(std::string_view bytes) {
  v1::Digest digest;
  digest.set_sha256(sha256(bytes));
  digest.set_size_bytes(bytes.size());
  return digest;
}

}  // namespace

std::string element_name(v1::DataType type) { return element_type(type).name; }

std::string canonical_schema(const Schema& schema) {
  std::string text = "fedstream schema v1\n";
  for (const auto& spec : schema) {
    text += spec.name() + '\t' + element_type(spec.dtype()).name + '\t' + shape_text(spec) + '\t' +
            (spec.trainable() ? "trainable" : "frozen") + '\t' +
            (spec.role() == v1::TENSOR_ROLE_STATISTIC ? "statistic" : "weight") + '\n';
  }
  return text;
}

std::string canonical_meaning(const v1::TaskMeaning& meaning) {
  std::string names;
  for (const auto& name : meaning.class_names()) names += (names.empty() ? "" : "\t") + name;
  return "fedstream meaning v1\n" + names + '\n' + meaning.positive_class() + '\n' + meaning.preprocessing() + '\n';
}

v1::TaskMeaning parse_meaning(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  v1::TaskMeaning meaning;
  if (lines.size() == 4) {
    for (std::size_t from = 0; !lines[1].empty() && from <= lines[1].size();) {
      const auto to = std::min(lines[1].find('\t', from), lines[1].size());
      meaning.add_class_names(lines[1].substr(from, to - from));
      from = to + 1;
    }
    meaning.set_positive_class(lines[2]);
    meaning.set_preprocessing(lines[3]);
  }
  if (canonical_meaning(meaning) != text) throw std::runtime_error("it holds no canonical description of a meaning");
  return meaning;
}

std::string canonical_model(const Manifest& manifest) {
  std::string text = "fedstream model v1\n";
  for (const auto& entry : manifest) {
    const auto& spec = entry.spec();
    text += spec.name() + '\t' + element_type(spec.dtype()).name + '\t' + shape_text(spec) + '\t' +
            hex(entry.digest().sha256()) + '\n';
  }
  return text;
}

v1::Digest model_digest(const Manifest& manifest) { return digest_of(canonical_model(manifest)); }

Entry entry_of(const Spec& spec, std::string_view values) {
  Entry entry;
  *entry.mutable_spec() = spec;
  *entry.mutable_digest() = digest_of(values);
  entry.set_encoding(v1::ENCODING_RAW);
  entry.set_encoded_size_bytes(values.size());
  return entry;
}

std::uint64_t size_of(const Manifest& manifest) {
  std::uint64_t size = 0;
  for (const auto& entry : manifest) size += entry.digest().size_bytes();
  return size;
}

void check_entry(const Entry& entry) {
  std::uint64_t size = 0;
  const bool is_sound = limits::is_tensor_name(entry.spec().name()) && measure(entry.spec(), &size) &&
                        entry.digest().sha256().size() == 32 && entry.digest().size_bytes() == size &&
                        entry.encoding() == v1::ENCODING_RAW && entry.encoded_size_bytes() == size;
  if (!is_sound) throw Trouble("the manifest's tensor " + entry.spec().name().substr(0, 80) + " is not sound");
}

void check_manifest(const Manifest& manifest, const Schema& schema, const std::string& sha256) {
  for (const auto& entry : manifest) check_entry(entry);
  const auto is_of = [](const Entry& entry, const Spec& spec) { return is_same_tensor(entry.spec(), spec); };
  if (!std::equal(manifest.begin(), manifest.end(), schema.begin(), schema.end(), is_of)) {
    throw Trouble("the manifest is of another schema");
  }
  if (model_digest(manifest).sha256() != sha256) throw Trouble("the manifest is not of the model that was asked for");
}

std::vector<v1::SchemaPart> schema_parts(const Schema& schema) {
  std::vector<v1::SchemaPart> parts(1);
  for (const auto& spec : schema) {
    if (parts.back().tensors_size() == limits::kMaxTensorsPerPart) parts.emplace_back();
    *parts.back().add_tensors() = spec;
  }
  parts.back().set_last(true);
  return parts;
}

std::vector<v1::ManifestPart> manifest_parts(const Manifest& manifest) {
  constexpr std::size_t kFramingBytes = 16;
  std::vector<v1::ManifestPart> parts(1);
  std::size_t bytes = 0;
  for (const auto& entry : manifest) {
    bytes += entry.ByteSizeLong() + kFramingBytes;
    if (parts.back().entries_size() == limits::kMaxTensorsPerPart || bytes >= limits::kMaxPartBytes) {
      parts.emplace_back();
      bytes = entry.ByteSizeLong() + kFramingBytes;
    }
    *parts.back().add_entries() = entry;
  }
  return parts;
}

v1::Chunk make_chunk(std::uint64_t offset, std::string data) {
  v1::Chunk chunk;
  chunk.set_write_offset(offset);
  chunk.set_crc32c(crc32c(data));
  chunk.set_data(std::move(data));
  return chunk;
}

std::string_view new_in_chunk(const v1::Chunk& chunk, std::uint64_t have, std::uint64_t body, std::uint64_t max_bytes) {
  const std::string_view data = chunk.data();
  const auto offset = chunk.write_offset();
  const auto where = "the chunk at " + std::to_string(offset);
  if (data.size() > std::min(max_bytes, limits::kMaxChunkBytes)) throw Trouble(where + " is larger than was agreed");
  if (crc32c(data) != chunk.crc32c()) throw Trouble(where + " was damaged on its way");
  if (offset > have) throw Trouble(where + " leaves bytes out: " + std::to_string(have) + " are here");
  if (offset > body || data.size() > body - offset) throw Trouble(where + " reaches past the end of the body");
  return data.substr(std::min<std::uint64_t>(have - offset, data.size()));
}

}  // namespace fedstream::client
