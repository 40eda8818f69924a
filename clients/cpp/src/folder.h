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

/// Tensors, each in a file named by the SHA-256 of its bytes, what has arrived of a model, and the finished update.
///
/// So a tensor that did not change is kept once and never downloaded twice. It counts only if its bytes have the digest
/// that is its name. An update counts once its record is there, which is written last. One thread at a time uses it: the
/// work on an offer, or the session while no work is going on.
class Folder {
 public:
  explicit Folder(const fs::path& folder) : tensors_(folder / "tensors"), updates_(folder / "updates") {
    make_folder(tensors_);
    make_folder(updates_);
  }

  /// A tensor's bytes, if they are here, rightly.
  std::optional<std::string> tensor(const Entry& entry) const {
    const auto file = tensors_ / hex(entry.digest().sha256());
    if (!fs::exists(file)) return std::nullopt;
    auto values = read_file(file);
    return sha256(values) == entry.digest().sha256() ? std::optional(std::move(values)) : std::nullopt;
  }

  void keep(const std::string& values) const { write_durably(tensors_ / hex(sha256(values)), values); }

  /// Where the body that is asked for with `request` gathers. It is not synced: what a power cut leaves is hashed before
  /// it counts.
  fs::path arriving(const v1::ReadChunksRequest& request) const {
    return tensors_ / (hex(sha256(request.SerializeAsString())) + ".arriving");
  }

  /// Keep a finished update durably.
  void keep(const KeptUpdate& update, const std::vector<std::string>& values) const {
    for (const auto& one : values) keep(one);
    write_durably(record_of(update.offer_id()), update.SerializeAsString());
  }

  /// The finished update of that offer and base with its values, if every byte of it is here; else it is trained again.
  std::optional<std::pair<KeptUpdate, std::vector<std::string>>> update(const v1::Offer& offer) const {
    KeptUpdate kept;
    const auto record = record_of(offer.offer_id());
    if (!fs::exists(record) || !kept.ParseFromString(read_file(record)) || kept.offer_id() != offer.offer_id() ||
        kept.base_sha256() != offer.base_model().model_digest().sha256() ||
        kept.header().model_digest().sha256() != model_digest(kept.entries()).sha256()) return std::nullopt;
    std::vector<std::string> all;
    for (const auto& entry : kept.entries()) {
      auto values = tensor(entry);
      if (!values) return std::nullopt;
      all.push_back(std::move(*values));
    }
    return std::pair(kept, all);
  }

  /// Forget all updates but that of `offer_id`, and all tensors but those of `manifest` and of that update.
  void keep_only(const std::string& offer_id, const Manifest& manifest) const {
    KeptUpdate update;
    const auto record = record_of(offer_id);
    if (fs::exists(record)) update.ParseFromString(read_file(record));
    std::set<fs::path> kept{record};
    for (const auto* entries : {&manifest, &update.entries()}) {
      for (const auto& entry : *entries) kept.insert(tensors_ / hex(entry.digest().sha256()));
    }
    for (const auto& folder : {tensors_, updates_}) {
      for (const auto& item : fs::directory_iterator(folder)) {
        if (kept.count(item.path()) == 0) fs::remove(item.path());
      }
    }
  }

 private:
  /// No path is built from text that the other side chose.
  fs::path record_of(const std::string& offer_id) const { return updates_ / (hex(sha256(offer_id)) + ".update"); }

  const fs::path tensors_, updates_;
};

/// A model as a `.safetensors` file: eight bytes of header length, a header in JSON, and the tensors' bytes.
inline std::string safetensors(const Model& model) {
  std::string json, body;
  for (int at = 0; at < model.manifest.size(); ++at) {
    const auto& spec = model.manifest[at].spec();
    const auto begin = std::to_string(body.size());
    body += model.values[std::size_t(at)];
    json += (at == 0 ? "{" : ",") + json_of(Fact("", spec.name()).value) + R"(:{"dtype":")" + element_type(spec.dtype()).name +
            R"(","shape":[)" + joined(spec.shape(), ',') + R"(],"data_offsets":[)" + begin + "," +
            std::to_string(body.size()) + "]}";
  }
  json += "}";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = json.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + json + body;
}

}  // namespace fedstream::client
