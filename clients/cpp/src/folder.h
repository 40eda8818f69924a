/// 4. What a site keeps on disk, and how it survives a power cut.
#pragma once

#include <fcntl.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "model.h"
#include "own.pb.h"

namespace fedstream::client {

namespace fs = std::filesystem;

/// An open file or folder, closed in any case.
class Handle {
 public:
  Handle(const fs::path& file, int flags) : file_(file), descriptor_(::open(file.c_str(), flags | O_CLOEXEC, 0600)) {
    check(descriptor_);
  }
  ~Handle() { ::close(descriptor_); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  void write(std::string_view data) {
    while (!data.empty()) data.remove_prefix(check(::write(descriptor_, data.data(), data.size())));
  }
  void sync() { check(::fsync(descriptor_)); }

 private:
  std::size_t check(ssize_t result) const {
    if (result < 0) throw fs::filesystem_error("file", file_, std::error_code(errno, std::generic_category()));
    return std::size_t(result);
  }
  const fs::path file_;
  const int descriptor_;
};

/// Make `file` hold `data`, whole or not at all, for its owner only; once this returns, a power cut cannot undo it.
/// @throws fs::filesystem_error
inline void write_durably(const fs::path& file, std::string_view data) {
  const fs::path temporary = file.string() + ".partial";
  {
    Handle handle(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    handle.write(data);
    handle.sync();
  }
  fs::rename(temporary, file);
  Handle(file.has_parent_path() ? file.parent_path() : ".", O_RDONLY | O_DIRECTORY).sync();
}

/// @throws fs::filesystem_error
inline std::string read_file(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::string content(std::istreambuf_iterator<char>(stream), {});
  if (stream.bad() || !stream.is_open()) {
    throw fs::filesystem_error("file", file, std::error_code(errno, std::generic_category()));
  }
  return content;
}

/// Make a folder that is its owner's alone.
inline void make_folder(const fs::path& folder) {
  if (fs::create_directories(folder)) fs::permissions(folder, fs::perms::owner_all);
}

/// What a site keeps: the model that it fetched last, the update that it finished last, and what has arrived of the next
/// model. They count only if every byte of them has its digest. One thread at a time uses it: the work on an offer, or
/// the session while no work is going on.
class Folder {
 public:
  explicit Folder(fs::path folder) : folder_(std::move(folder)) { make_folder(folder_); }

  std::optional<Model> model() const { return read("model"); }
  /// Of that offer. One of another is of no use any more.
  std::optional<Model> update(const v1::Offer& offer) const {
    auto kept = read("update");
    const auto base = [](const v1::Offer& one) { return one.base_model().model_digest().sha256(); };
    return kept && kept->offer().offer_id() == offer.offer_id() && base(kept->offer()) == base(offer) ? kept : std::nullopt;
  }
  void keep_model(const Model& model) const { write_durably(folder_ / "model", model.SerializeAsString()); }
  void keep_update(const Model& update) const { write_durably(folder_ / "update", update.SerializeAsString()); }

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
  std::optional<Model> read(const char* name) const {
    Model model;
    if (!fs::exists(folder_ / name) || !model.ParseFromString(read_file(folder_ / name))) return std::nullopt;
    bool is_whole = model.entries_size() == model.values_size();
    for (int at = 0; is_whole && at < model.values_size(); ++at) {
      is_whole = sha256(model.values(at)) == model.entries(at).digest().sha256();
    }
    return is_whole ? std::optional(model) : std::nullopt;  // a damaged one is made or fetched again
  }

  const fs::path folder_;
};

/// A model as a `.safetensors` file: eight bytes of header length, a header in JSON, and the tensors' bytes.
inline std::string safetensors(const Model& model) {
  std::string json, body;
  for (int at = 0; at < model.entries_size(); ++at) {
    const auto& spec = model.entries(at).spec();
    json += (at == 0 ? "{" : ",") + json_of(Fact("", spec.name()).value) + R"(:{"dtype":")" + element_type(spec.dtype()).name +
            R"(","shape":[)" + joined(spec.shape(), ',') + R"(],"data_offsets":[)" + std::to_string(body.size());
    body += model.values(at);
    json += "," + std::to_string(body.size()) + "]}";
  }
  json += "}";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = json.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + json + body;
}

}  // namespace fedstream::client
