#include "store.h"

#include <algorithm>
#include <functional>

#include "digest.h"

namespace fedstream::client {
namespace {

constexpr std::uint64_t kPieceBytes = 1 << 20;

/// SHA-256 of a file, read piece by piece: a model may be larger than the memory.
std::string sha256_of_file(const fs::path& file) {
  Sha256 digest;
  std::string piece;
  for (std::uint64_t at = 0; !(piece = read_part(file, at, kPieceBytes)).empty(); at += piece.size()) digest.add(piece);
  return digest.finish();
}

void remove_but(const fs::path& folder, const std::function<bool(const std::string&)>& is_kept) {
  for (const auto& item : fs::directory_iterator(folder)) {
    if (!is_kept(item.path().filename().string())) fs::remove(item.path());
  }
}

}  // namespace

Store::Store(const fs::path& folder) : tensors_(folder / "tensors"), updates_(folder / "updates") {
  make_folder(tensors_);
  make_folder(updates_);
}

bool Store::has(const Entry& entry) {
  const auto& name = entry.digest().sha256();
  if (verified_.count(name) != 0) return true;
  if (!fs::exists(path_of(entry)) || sha256_of_file(path_of(entry)) != name) return false;
  verified_.insert(name);
  return true;
}

std::string Store::read(const Entry& entry, std::uint64_t offset, std::uint64_t length) const {
  const auto size = entry.digest().size_bytes();
  const auto wanted = offset < size ? std::min(length, size - offset) : 0;
  auto data = read_part(path_of(entry), offset, wanted);
  if (data.size() != wanted) throw std::runtime_error("a tensor on disk is shorter than it was");
  return data;
}

void Store::put(const Entry& entry, std::string_view values) {
  write_durably(path_of(entry), values);
  verified_.insert(entry.digest().sha256());
}

std::uint64_t Store::partial_size(const Entry& entry) const {
  std::error_code absent;
  const auto size = fs::file_size(partial_path(entry), absent);
  return absent ? 0 : size;
}

bool Store::adopt(const Entry& entry) {
  append(partial_path(entry), "");  // a tensor without bytes is a file too
  if (sha256_of_file(partial_path(entry)) != entry.digest().sha256()) {
    drop_partial(entry);
    return false;
  }
  rename_durably(partial_path(entry), path_of(entry));
  verified_.insert(entry.digest().sha256());
  return true;
}

void Store::record(const KeptUpdate& update) const {
  write_durably(update_path(update.offer_id()), update.SerializeAsString());
}

std::optional<KeptUpdate> Store::load_update(const std::string& offer_id, const std::string& base_sha256) {
  KeptUpdate update;
  const auto path = update_path(offer_id);
  if (!fs::exists(path) || !update.ParseFromString(read_file(path))) return std::nullopt;
  const Manifest manifest(update.entries().begin(), update.entries().end());
  const bool is_whole = update.base_sha256() == base_sha256 && update.offer_id() == offer_id &&
                        model_digest(manifest).sha256() == update.header().model_digest().sha256() &&
                        std::all_of(manifest.begin(), manifest.end(), [this](const Entry& one) { return has(one); });
  return is_whole ? std::optional(update) : std::nullopt;  // a damaged one is trained again
}

void Store::keep_only(const std::string& offer_id, const Manifest& manifest) {
  std::set<std::string> kept;
  const auto keep = [&](const Entry& entry) { kept.insert(path_of(entry).filename()); };
  std::for_each(manifest.begin(), manifest.end(), keep);
  KeptUpdate update;
  const auto path = update_path(offer_id);
  if (fs::exists(path) && update.ParseFromString(read_file(path))) {
    std::for_each(update.entries().begin(), update.entries().end(), keep);
  }
  remove_but(updates_, [&](const std::string& name) { return name == path.filename(); });
  remove_but(tensors_, [&](const std::string& name) { return kept.count(name.substr(0, name.find('.'))) != 0; });
  doubt();
}

fs::path Store::path_of(const Entry& entry) const { return tensors_ / hex(entry.digest().sha256()); }

fs::path Store::update_path(const std::string& offer_id) const {
  // No path is built from text that the other side chose.
  return updates_ / (hex(sha256(offer_id)).substr(0, 32) + ".update");
}

}  // namespace fedstream::client
