#include "download.h"

#include "limits.h"

namespace fedstream::client {
namespace {

constexpr int kMostRepairs = 3;

/// A tensor that is to come, and its index in the manifest.
struct Lacking {
  std::uint32_t index;
  Entry entry;
};

class Download {
 public:
  Download(Site& site, const std::string& sha256, std::uint64_t max_chunk_bytes, const OnBytes& on_bytes,
           const Cancel& cancel)
      : site_(site), sha256_(sha256), max_chunk_bytes_(max_chunk_bytes), on_bytes_(on_bytes), cancel_(cancel) {}

  Manifest once() {
    const auto manifest = read_manifest();
    for (auto lacking = lacking_of(manifest); !lacking.empty(); lacking = lacking_of(manifest)) receive(lacking);
    return manifest;
  }

  std::uint64_t received() const { return received_; }

 private:
  Manifest read_manifest() {
    auto stream = site_.connection.get_manifest(sha256_, cancel_);
    Manifest manifest;
    v1::GetManifestResponse message;
    while (stream.read(&message)) {
      for (auto& entry : *message.mutable_part()->mutable_entries()) manifest.push_back(std::move(entry));
      if (manifest.size() > limits::kMaxTensors) throw Trouble("the manifest is too long");
    }
    try {
      check_manifest(manifest, site_.training->schema(), sha256_);
    } catch (const Trouble& error) {
      count_repair(error.what());
    }
    return manifest;
  }

  /// What is not in the store. Two tensors of the same bytes are one file, and travel once.
  std::vector<Lacking> lacking_of(const Manifest& manifest) {
    std::vector<Lacking> lacking;
    std::set<std::string> seen;
    for (std::uint32_t index = 0; index < manifest.size(); ++index) {
      const auto& entry = manifest[index];
      if (!site_.store.has(entry) && seen.insert(entry.digest().sha256()).second) lacking.push_back({index, entry});
    }
    return lacking;
  }

  /// One stream: the tensors that are lacking, the first of them from where its bytes on disk end.
  void receive(const std::vector<Lacking>& lacking) {
    const auto& first = lacking.front().entry;
    const auto kept = site_.store.partial_size(first);
    if (kept >= first.digest().size_bytes()) {
      site_.store.adopt(first);  // it had arrived, but was not counted yet; or it goes
      if (kept > 0 || site_.store.has(first)) return;
    }
    v1::ReadChunksRequest request;
    request.set_model_sha256(sha256_);
    request.set_read_offset(kept);
    request.set_max_chunk_bytes(std::uint32_t(max_chunk_bytes_));
    std::uint64_t total = 0;
    for (const auto& [index, entry] : lacking) {
      request.add_tensors(index);
      total += entry.digest().size_bytes();
    }
    const auto tensors = double(lacking.size());
    site_.log.info("downloading a model", {{"bytes", double(total)}, {"kept", double(kept)}, {"tensors", tensors}});
    try {
      auto stream = site_.connection.read_chunks(request, cancel_);
      take_body(stream, lacking, kept, total);
    } catch (const Refusal& error) {
      if (error.reason != "WRONG_OFFSET") throw;
      site_.store.drop_partial(first);  // more is here than there is
      throw Trouble(error.what());
    }
  }

  /// Cut the body, as it comes chunk by chunk, where tensors end.
  void take_body(ChunksIn& stream, const std::vector<Lacking>& lacking, std::uint64_t kept, std::uint64_t total) {
    auto at = lacking.begin();
    std::uint64_t offset = kept, in_tensor = kept;
    std::string_view data;
    v1::ReadChunksResponse message;
    for (;;) {
      while (at != lacking.end() && in_tensor == at->entry.digest().size_bytes()) {
        if (!site_.store.adopt(at->entry))
          count_repair("tensor " + at->entry.spec().name() + " does not match its digest");
        in_tensor = 0;
        if (++at != lacking.end()) site_.store.drop_partial(at->entry);
      }
      if (at == lacking.end()) return;
      while (data.empty()) {
        cancel_.check();
        if (!stream.read(&message)) throw Trouble("the body ended after " + std::to_string(offset) + " bytes");
        data = new_in_chunk(message.chunk(), offset, total, max_chunk_bytes_);
      }
      const auto taken = data.substr(0, at->entry.digest().size_bytes() - in_tensor);
      site_.store.append_partial(at->entry, taken);
      data.remove_prefix(taken.size());
      in_tensor += taken.size();
      offset += taken.size();
      received_ += taken.size();
      on_bytes_(offset, total);
    }
  }

  /// @throws Trouble it is worth asking again; std::runtime_error it was asked too often
  [[noreturn]] void count_repair(const std::string& what) {
    if (++repairs_ > kMostRepairs) throw std::runtime_error(what + ", again and again");
    throw Trouble(what);
  }

  Site& site_;
  const std::string& sha256_;
  const std::uint64_t max_chunk_bytes_;
  const OnBytes& on_bytes_;
  const Cancel& cancel_;
  std::uint64_t received_ = 0;
  int repairs_ = 0;
};

}  // namespace

Manifest fetch_model(Site& site, const std::string& sha256, std::uint64_t max_chunk_bytes, const Patience& patience,
                     const OnBytes& on_bytes, const Cancel& cancel) {
  Download download(site, sha256, max_chunk_bytes, on_bytes, cancel);
  return until_done([&] { return download.once(); }, [&] { return download.received(); }, patience,
                    "downloading a model", site.log, cancel);
}

}  // namespace fedstream::client
