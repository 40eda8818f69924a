/// 4. What a site keeps on disk, and how it survives a power cut.
#pragma once

#include <fcntl.h>

#include <filesystem>
#include <fstream>
#include <iterator>

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
  std::ofstream stream(temporary, std::ios::binary);
  stream << data;
  stream.close();
  if (!stream) fail(temporary);
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

/// What a site keeps: the model that it fetched last, the update that it finished last, and what has arrived of the
/// next model. They count only if every byte of them has its digest. One thread at a time uses it: the work on an
/// offer, or the session while no work is going on.
class Folder {
 public:
  explicit Folder(fs::path folder) : folder_(std::move(folder)) { fs::create_directories(folder_); }

  /// @param name `model` or `update`
  std::optional<Model> read(const char* name) const {
    Model model;
    if (!fs::exists(folder_ / name) || !model.ParseFromString(read_file(folder_ / name))) return std::nullopt;
    bool is_whole =
        model.entries_size() == model.values_size() &&
        (!model.has_header() || model.header().model_digest().sha256() == model_digest(model.entries()).sha256());
    for (int at = 0; is_whole && at < model.values_size(); ++at) {
      is_whole = sha256(model.values(at)) == model.entries(at).digest().sha256();
    }
    return is_whole ? std::optional(model) : std::nullopt;  // a damaged one is made or fetched again
  }

  /// The update for that offer. One for another is of no use any more.
  std::optional<Model> update(const v1::Offer& offer) const {
    auto kept = read("update");
    const auto base = [](const v1::Offer& one) { return one.base_model().model_digest().sha256(); };
    return kept && kept->offer().offer_id() == offer.offer_id() && base(kept->offer()) == base(offer) ? kept
                                                                                                      : std::nullopt;
  }
  void keep(const char* name, const Model& model) const { write_durably(folder_ / name, model.SerializeAsString()); }

  /// Where the body that is asked for with `request` gathers; what has gathered for another one is gone. It is not
  /// synced: what a power cut leaves is hashed before it counts.
  fs::path arriving(const v1::ReadChunksRequest& request) const {
    const auto file = folder_ / ("arriving-" + hex(sha256(request.SerializeAsString())));
    for (const auto& item : fs::directory_iterator(folder_)) {
      if (item.path().filename().string().rfind("arriving-", 0) == 0 && item.path() != file) fs::remove(item.path());
    }
    return file;
  }

 private:
  const fs::path folder_;
};

/// A model as a `.safetensors` file: eight bytes of header length, a header in JSON, and the tensors' bytes.
inline std::string safetensors(const Model& model) {
  std::string json, body;
  for (int at = 0; at < model.entries_size(); ++at) {
    const auto& spec = model.entries(at).spec();
    json += (at == 0 ? "{" : ",") + json_of(Fact(spec.name()).value) + R"(:{"dtype":")" +
            element_type(spec.dtype()).name + R"(","shape":[)" + absl::StrJoin(spec.shape(), ",") +
            R"(],"data_offsets":[)" + std::to_string(body.size());
    body += model.values(at);
    json += "," + std::to_string(body.size()) + "]}";
  }
  json += "}";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = json.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + json + body;
}

}  // namespace fedstream::client
