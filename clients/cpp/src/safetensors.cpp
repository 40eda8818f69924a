#include "safetensors.h"

#include "log.h"

namespace fedstream::client {
namespace {

constexpr std::uint64_t kPieceBytes = 1 << 20;

}  // namespace

std::string safetensors_header(const Manifest& manifest) {
  std::string json = "{";
  std::uint64_t offset = 0;
  for (const auto& entry : manifest) {
    std::string shape;
    for (const auto length : entry.spec().shape()) shape += (shape.empty() ? "" : ",") + std::to_string(length);
    const auto end = offset + entry.digest().size_bytes();
    json += (json.size() == 1 ? "" : ",") + json_text(entry.spec().name()) + R"(:{"dtype":")" +
            element_name(entry.spec().dtype()) + R"(","shape":[)" + shape + R"(],"data_offsets":[)" +
            std::to_string(offset) + "," + std::to_string(end) + "]}";
    offset = end;
  }
  json += "}";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  std::string length;
  for (int byte = 0; byte < 8; ++byte) length += char((std::uint64_t(json.size()) >> (8 * byte)) & 0xff);
  return length + json;
}

void write_safetensors(const fs::path& file, const Manifest& manifest, const Store& store) {
  const fs::path temporary = file.string() + kTemporary;
  fs::remove(temporary);
  append(temporary, safetensors_header(manifest));
  for (const auto& entry : manifest) {
    for (std::uint64_t at = 0; at < entry.digest().size_bytes(); at += kPieceBytes) {
      append(temporary, store.read(entry, at, kPieceBytes));
    }
  }
  rename_durably(temporary, file);
}

}  // namespace fedstream::client
