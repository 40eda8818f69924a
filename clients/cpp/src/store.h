/// What a site keeps on disk: tensors, each in a file named by the SHA-256 of its bytes, and finished updates.
///
/// A model or an update is a list of entries; its bytes are in `tensors/`. So a tensor that did not change is kept once
/// and never downloaded twice, and a download resumes with what lies in `NAME.partial`. A tensor counts only if its
/// bytes have the digest that is its name. An update counts once its record is there, which is written last.
///
/// One thread at a time uses it: the work on an offer, or the session while no work is going on.
#pragma once

#include <optional>
#include <set>
#include <string>

#include "durable.h"
#include "model.h"
#include "own.pb.h"

namespace fedstream::client {

class Store {
 public:
  explicit Store(const fs::path& folder);

  /// Whether a tensor is here, rightly; each is hashed once in a process, or again after `doubt`.
  bool has(const Entry& entry);
  void doubt() { verified_.clear(); }

  /// A tensor's bytes from `offset` on, `length` at most.
  std::string read(const Entry& entry, std::uint64_t offset = 0, std::uint64_t length = UINT64_MAX) const;

  /// Keep a tensor durably.
  void put(const Entry& entry, std::string_view values);

  /// How many bytes of a tensor have arrived.
  std::uint64_t partial_size(const Entry& entry) const;

  /// Add bytes that arrived. They are not synced: what a power cut leaves is hashed before it counts.
  void append_partial(const Entry& entry, std::string_view data) { append(partial_path(entry), data); }

  /// Forget what has arrived of a tensor.
  void drop_partial(const Entry& entry) const { fs::remove(partial_path(entry)); }

  /// Count a tensor that has arrived whole; false if its bytes were wrong and are gone.
  bool adopt(const Entry& entry);

  /// Make an update count, durably; its tensors are here already.
  void record(const KeptUpdate& update) const;

  /// The finished update of that offer and base, if every byte of it is here.
  std::optional<KeptUpdate> load_update(const std::string& offer_id, const std::string& base_sha256);

  /// Forget all updates but that of `offer_id`, and all tensors but those of `manifest` and of that update.
  void keep_only(const std::string& offer_id, const Manifest& manifest);

 private:
  fs::path path_of(const Entry& entry) const;
  fs::path partial_path(const Entry& entry) const { return path_of(entry).string() + kTemporary; }
  fs::path update_path(const std::string& offer_id) const;

  fs::path tensors_;
  fs::path updates_;
  std::set<std::string> verified_;
};

}  // namespace fedstream::client
