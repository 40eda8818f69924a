/// 4. What a site keeps on disk, and how it survives a power cut.
#pragma once

#include <fcntl.h>

#include <fstream>
#include <iterator>
#include <optional>

#include "model.h"

namespace fedstream::client {

namespace fs = std::filesystem;

[[noreturn]] inline void fail(const fs::path& file) {
  throw fs::filesystem_error("file", file, std::error_code(errno, std::generic_category()));
}

/// Make what a file or a folder holds durable.
inline void sync(const fs::path& place) {
  const int descriptor = ::open(place.c_str(), O_RDONLY | O_CLOEXEC);
  const bool is_kept = descriptor >= 0 && ::fsync(descriptor) == 0;
  if (descriptor >= 0) ::close(descriptor);
  if (!is_kept) fail(place);
}

/// Make `file` hold `data`, whole or not at all; once this returns, a power cut cannot undo it. Files are their owner's
/// alone by the umask that the command sets.
/// @throws fs::filesystem_error
inline void write_durably(const fs::path& file, const std::string& data) {
  const fs::path temporary = file.string() + ".partial";
  if (!(std::ofstream(temporary, std::ios::binary) << data << std::flush)) fail(temporary);
  sync(temporary);
  fs::rename(temporary, file);
  sync(file.has_parent_path() ? file.parent_path() : ".");
}

/// @throws fs::filesystem_error
inline std::string read_file(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::string content(std::istreambuf_iterator<char>(stream), {});
  if (stream.bad() || !stream.is_open()) fail(file);
  return content;
}

/// What a site keeps: the body of the model that it fetched last, as far as it has arrived, and the update that it
/// finished last. One thread at a time uses it: the work on an offer, or the session while no work is going on.
class Folder {
 public:
  explicit Folder(fs::path folder) : folder_(std::move(folder)) { fs::create_directories(folder_ / "model"); }

  /// Where the body of that model gathers; any other's is gone then. It is not synced: it counts by its digests.
  fs::path body_of(const std::string& model_sha256) const {
    const auto file = folder_ / "model" / hex(model_sha256);
    for (const auto& item : fs::directory_iterator(folder_ / "model")) {
      if (item.path() != file) fs::remove(item.path());
    }
    return file;
  }

  /// The update that was trained for that offer, if every byte of it is there; a damaged one is made again.
  std::optional<Model> update(const v1::Offer& offer, const Schema& schema) const {
    Model kept;
    const auto file = folder_ / "update";
    const bool counts = fs::exists(file) && kept.ParseFromString(read_file(file)) &&
                        kept.header().upload_id() == offer.upload_id() && kept.values_size() == schema.size() &&
                        kept.header().model_digest().sha256() == model_digest(manifest_of(schema, kept)).sha256();
    return counts ? std::optional(std::move(kept)) : std::nullopt;
  }
  void keep_update(const Model& update) const { write_durably(folder_ / "update", update.SerializeAsString()); }

 private:
  const fs::path folder_;
};

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

}  // namespace fedstream::client
