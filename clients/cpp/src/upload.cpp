#include "upload.h"

#include <algorithm>
#include <cstdlib>

#include "backoff.h"

namespace fedstream::client {
namespace {

/// How often an upload may begin anew before something is wrong for good.
constexpr int kMostRestarts = 3;

bool is_one_of(const Refusal& error, std::initializer_list<const char*> reasons) {
  return std::any_of(reasons.begin(), reasons.end(), [&](const char* one) { return error.reason == one; });
}

class Upload {
 public:
  Upload(Site& site, const KeptUpdate& update, const Terms& terms, bool begun_before, const OnBytes& on_bytes,
         const Cancel& cancel)
      : site_(site),
        update_(update),
        id_(update.header().upload_id()),
        window_(std::max<std::uint64_t>(terms.window_bytes, 1)),
        // Half the window at most: so both ends never wait for each other (R-UP-11).
        chunk_bytes_(std::clamp<std::uint64_t>(window_ / 2, 1, std::max<std::uint64_t>(terms.max_chunk_bytes, 1))),
        begun_before_(begun_before),
        on_bytes_(on_bytes),
        cancel_(cancel) {}

  /// One try. @returns as `send_update`
  std::string once() {
    try {
      const bool can_resume = (has_body_ || begun_before_) && ask_status();
      if (!can_resume) put_manifest();
      if (committed_ < size_) write_body();
      return finish();
    } catch (const Refusal& error) {
      judge(error);
      throw;
    }
  }

  std::uint64_t highest() const { return highest_; }

 private:
  /// Ask how far the server is; whether to go on from there with the body as agreed (R-UP-17).
  bool ask_status() {
    const auto status = site_.connection.upload_status(id_, cancel_);
    switch (status.state()) {
      case v1::UPLOAD_STATE_CLOSED:
        throw Unwanted("the round closed before the update was there");
      case v1::UPLOAD_STATE_ADMITTED:
      case v1::UPLOAD_STATE_QUARANTINED:
        commit(size_);
        return true;
      case v1::UPLOAD_STATE_OPEN:
        if (!has_body_ || status.body_size_bytes() != size_) return false;
        commit(status.committed_size());
        site_.log.info("resuming the upload", {{"committed", double(committed_)}, {"of", double(size_)}});
        return true;
      default:
        return false;
    }
  }

  void put_manifest() {
    const Manifest manifest(update_.entries().begin(), update_.entries().end());
    const auto answer = site_.connection.put_manifest(update_.header(), manifest_parts(manifest), cancel_);
    body_.clear();
    std::int64_t before = -1;
    for (const auto index : answer.missing_tensors()) {  // R-UP-5
      if (index >= manifest.size() || std::int64_t{index} <= before) {
        throw Trouble("the server asks for tensors that are not in the manifest");
      }
      before = index;
      body_.push_back(manifest[index]);
    }
    size_ = size_of(body_);
    if (answer.body_size_bytes() != size_) throw Trouble("the server counts the body otherwise");
    has_body_ = true;
    commit(answer.committed_size());
    site_.log.info("sending the update", {{"bytes", double(size_)}, {"committed", double(committed_)}});
  }

  void write_body() {
    auto stream = site_.connection.write_chunks(cancel_);
    v1::WriteChunksResponse answer;
    const auto hear = [&] {
      const bool is_open = stream.read(&answer);
      if (is_open) commit(answer.committed_size());
      return is_open;
    };
    for (auto offset = committed_; offset < size_;) {
      cancel_.check();
      auto data = read_body(offset);
      while (offset + data.size() > committed_ + window_) {
        if (!hear()) throw Trouble("the server ended the stream");
      }
      v1::WriteChunksRequest request;
      request.set_upload_id(id_);
      const auto length = data.size();
      *request.mutable_chunk() = make_chunk(offset, std::move(data));
      stream.write(request);
      offset += length;
    }
    stream.writes_done();
    while (hear()) continue;
    if (committed_ < size_) throw Trouble("the server ended the stream at " + std::to_string(committed_) + " bytes");
  }

  /// The next chunk of the body, in which the tensors stand one after another.
  std::string read_body(std::uint64_t offset) const {
    std::string data;
    std::uint64_t start = 0;
    for (const auto& entry : body_) {
      const auto size = entry.digest().size_bytes();
      const auto from = std::max(offset, start) - start;
      if (from < size && data.size() < chunk_bytes_) data += site_.store.read(entry, from, chunk_bytes_ - data.size());
      start += size;
    }
    return data;
  }

  std::string finish() {
    const auto answer = site_.connection.finish_upload(id_, cancel_);
    if (answer.state() != v1::UPLOAD_STATE_QUARANTINED) return "";
    return answer.reason().empty() ? "no reason given" : answer.reason();
  }

  void commit(std::uint64_t committed) {
    committed_ = std::min(committed, size_);
    highest_ = std::max(highest_, committed_);
    on_bytes_(committed_, size_);
  }

  /// What the contract prescribes for a refusal; returns where it is for the caller to take.
  void judge(const Refusal& error) {
    if (is_one_of(error, {"ROUND_CLOSED", "UNKNOWN_UPLOAD"})) throw Unwanted(error.what());
    if (is_one_of(error, {"WRONG_OFFSET", "CHECKSUM_MISMATCH", "BODY_INCOMPLETE"})) throw Trouble(error.what());
    if (!is_one_of(error, {"MANIFEST_REQUIRED", "DIGEST_MISMATCH", "SUPERSEDED", "CHUNK_TOO_LARGE"})) return;
    if (++restarts_ > kMostRestarts) return;
    if (error.reason == "CHUNK_TOO_LARGE") {
      const auto most = error.metadata.find("max_chunk_bytes");
      const auto said = most == error.metadata.end() ? 0 : std::strtoull(most->second.c_str(), nullptr, 10);
      chunk_bytes_ = std::clamp<std::uint64_t>(said, 1, std::max<std::uint64_t>(chunk_bytes_ / 2, 1));
    } else if (error.reason != "SUPERSEDED") {
      has_body_ = begun_before_ = false;  // the manifest comes first
    }
    if (error.reason == "DIGEST_MISMATCH") check_own_bytes();
    throw Trouble(error.what());
  }

  void check_own_bytes() {
    site_.store.doubt();
    for (const auto& entry : update_.entries()) {
      if (!site_.store.has(entry)) throw Damaged();
    }
  }

  Site& site_;
  const KeptUpdate& update_;
  const std::string& id_;
  const std::uint64_t window_;
  std::uint64_t chunk_bytes_;
  bool begun_before_;
  const OnBytes& on_bytes_;
  const Cancel& cancel_;

  bool has_body_ = false;  // whether the server has said which tensors travel
  Manifest body_;
  std::uint64_t size_ = 0;
  std::uint64_t committed_ = 0;
  std::uint64_t highest_ = 0;
  int restarts_ = 0;
};

}  // namespace

std::string send_update(Site& site, const KeptUpdate& update, const Terms& terms, bool begun_before,
                        const OnBytes& on_bytes, const Cancel& cancel) {
  Upload upload(site, update, terms, begun_before, on_bytes, cancel);
  return until_done([&] { return upload.once(); }, [&] { return upload.highest(); }, Patience(), "sending the update",
                    site.log, cancel);
}

}  // namespace fedstream::client
