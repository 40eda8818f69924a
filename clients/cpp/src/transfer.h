/// 5. Weights on their way: models in, updates out, each resumed where it was cut.
#pragma once

#include "calls.h"
#include "fedstream/v1/transfer.grpc.pb.h"
#include "folder.h"

namespace fedstream::client {

/// What all transfers of a site need.
struct Site {
  Link& link;
  Folder folder;
  Task task;
};

/// What both ways have in common.
struct Transfer {
  using Service = v1::TransferService;

  std::unique_ptr<Service::Stub> stub() const { return Service::NewStub(site.link.channel()); }
  /// Whether what went wrong is worth another try; after some, it is wrong for good.
  bool may_repair() { return ++repairs <= 3; }

  Site& site;
  const v1::Welcome& terms;
  Cancel& cancel;
  int repairs = 0;
};

/// Getting a model: its manifest, then the tensors that the last one did not have, all in one body that gathers in a
/// file.
class Download : Transfer {
 public:
  Download(Site& site, const v1::Welcome& terms, Cancel& cancel, std::string sha256)
      : Transfer{site, terms, cancel}, sha256_(std::move(sha256)) {
    const auto kept = site.folder.read("model").value_or(Model());
    for (int at = 0; at < kept.values_size(); ++at) here_[kept.entries(at).digest().sha256()] = kept.values(at);
  }

  /// @throws Dropped, Refusal, Trouble (when the patience ends), std::runtime_error (it arrives damaged each time)
  Model run(const Patience& patience = {}) {
    return until_done(
        "downloading a model", patience, cancel, [this] { return received_; }, [this] { return once(); });
  }

 private:
  Model once() {
    Model model;
    *model.mutable_entries() = read_manifest();
    v1::ReadChunksRequest lacking;
    lacking.set_model_sha256(sha256_);
    for (int at = 0; at < model.entries_size(); ++at) {
      const auto& sha256 = model.entries(at).digest().sha256();
      if (here_.count(sha256) == 0) lacking.add_tensors(std::uint32_t(at));
    }
    if (!lacking.tensors().empty()) receive(model.entries(), lacking);  // an empty list would ask for all
    for (const auto& entry : model.entries()) model.add_values(here_.at(entry.digest().sha256()));
    site.folder.keep("model", model);
    return model;
  }

  Manifest read_manifest() {
    Call call(kDigestSeconds, cancel);
    v1::GetManifestRequest request;
    request.set_model_sha256(sha256_);
    const auto stream = stub()->GetManifest(&call.context, request);
    Manifest manifest;
    v1::GetManifestResponse message;
    while (stream->Read(&message)) {
      manifest.MergeFrom(message.part().entries());
      if (manifest.size() > kMaxTensors) throw Trouble("the manifest is too long");
    }
    call.require(stream->Finish());
    try {
      check_manifest(manifest, site.task.schema, sha256_);
    } catch (const Trouble& error) {
      count_repair(error.what());
    }
    return manifest;
  }

  /// One body, from where its bytes on disk end; what of it is right is here.
  void receive(const Manifest& manifest, v1::ReadChunksRequest request) {
    const auto file = site.folder.arriving(request);
    std::error_code absent;
    std::uint64_t have = fs::file_size(file, absent), total = 0;
    for (const auto index : request.tensors()) total += manifest[int(index)].digest().size_bytes();
    if (absent) have = 0;
    if (have < total) {
      request.set_read_offset(have);
      request.set_max_chunk_bytes(terms.max_chunk_bytes());
      log_line("info", "downloading a model", {{"bytes", total}, {"kept", have}});
      Call call(kChunksSeconds, cancel);
      const auto stream = stub()->ReadChunks(&call.context, request);
      std::ofstream arriving(file, std::ios::binary | std::ios::app);
      v1::ReadChunksResponse message;
      while (have < total && stream->Read(&message)) {
        const auto data = new_in_chunk(message.chunk(), have, total, terms.max_chunk_bytes());
        if (!arriving.write(data.data(), std::streamsize(data.size())).flush()) fail(file);
        have += data.size();
        received_ += data.size();
      }
      if (have < total) {
        call.require(stream->Finish());
        throw Trouble("the body ended after " + std::to_string(have) + " bytes");
      }
    }
    const auto body = total == 0 ? "" : read_file(file);
    fs::remove(file);
    std::size_t at = 0;
    bool is_sound = true;
    for (const auto index : request.tensors()) {
      const auto& digest = manifest[int(index)].digest();
      auto values = body.substr(at, digest.size_bytes());
      at += values.size();
      const bool is_right = client::sha256(values) == digest.sha256();
      if (is_right) here_[digest.sha256()] = std::move(values);
      is_sound = is_sound && is_right;
    }
    if (!is_sound) count_repair("a tensor does not match its digest");
  }

  /// @throws Trouble it is worth asking again; std::runtime_error it was asked too often
  [[noreturn]] void count_repair(const std::string& what) {
    if (!may_repair()) throw std::runtime_error(what + ", again and again");
    throw Trouble(what);
  }

  const std::string sha256_;
  std::map<std::string, std::string> here_;  // tensors by digest: those of the last model need not travel again
  std::uint64_t received_ = 0;
};

/// Sending an update: whether it is still wanted, the manifest, the tensors that the server lacks, finish. After
/// any cut the same again (R-UP-17).
class Upload : Transfer {
 public:
  Upload(Site& site, const v1::Welcome& terms, Cancel& cancel, const Model& update)
      : Transfer{site, terms, cancel},
        update_(update),
        id_(update.header().upload_id()),
        // Half the window at most: so both ends never wait for each other (R-UP-11).
        chunk_bytes_(std::max(1U, std::min(terms.window_bytes() / 2, terms.max_chunk_bytes()))) {}

  /// Send until the server has the update durably.
  /// @returns why it was kept aside; empty if it is in the round
  /// @throws Dropped, Refusal
  std::string run() {
    return until_done(
        "sending the update", {}, cancel, [this] { return highest_; }, [this] { return once(); });
  }

 private:
  std::string once() {
    try {
      v1::GetUploadStatusRequest request;
      request.set_upload_id(id_);
      const auto status = ask(stub(), &Service::Stub::GetUploadStatus, request, kAskSeconds, cancel);
      if (status.state() == v1::UPLOAD_STATE_CLOSED) throw Dropped("the round closed before the update was there");
      if (status.state() == v1::UPLOAD_STATE_ADMITTED || status.state() == v1::UPLOAD_STATE_QUARANTINED)
        return finish();
      put_manifest();
      if (committed_ < body_.size()) write_body();
      return finish();
    } catch (const Refusal& error) {
      judge(error);
      throw;
    }
  }

  void put_manifest() {
    Call call(kDigestSeconds, cancel);
    v1::PutManifestResponse answer;
    const auto writer = stub()->PutManifest(&call.context, &answer);
    v1::PutManifestRequest request;
    *request.mutable_header() = update_.header();
    bool is_open = writer->Write(request);
    for (const auto& part : manifest_parts(update_.entries())) {
      *request.mutable_part() = part;
      is_open = is_open && writer->Write(request);
    }
    if (is_open) writer->WritesDone();
    call.require(writer->Finish());
    std::string body;
    std::int64_t before = -1;
    for (const std::int64_t index : answer.missing_tensors()) {  // R-UP-5
      if (index >= update_.entries_size() || index <= before)
        throw Trouble("the server asks for tensors that are not there");
      body += update_.values(int(before = index));
    }
    if (answer.body_size_bytes() != body.size()) throw Trouble("the server counts the body otherwise");
    const bool is_first = std::exchange(body_, std::move(body)).empty();
    committed_ = answer.committed_size();
    const Facts facts{{"bytes", body_.size()}, {"committed", committed_}};
    log_line("info", is_first ? "sending the update" : "resuming the upload", facts);
  }

  void write_body() {
    Call call(kChunksSeconds, cancel);
    const auto stream = stub()->WriteChunks(&call.context);
    v1::WriteChunksResponse answer;
    const auto hear = [&] {
      if (!stream->Read(&answer)) return false;
      committed_ = answer.committed_size();
      highest_ = std::max(highest_, committed_);
      return true;
    };
    bool is_open = true;
    for (auto offset = committed_; is_open && offset < body_.size();) {
      const auto data = std::string_view(body_).substr(offset, chunk_bytes_);
      while (is_open && offset + data.size() > committed_ + terms.window_bytes()) is_open = hear();  // R-UP-9
      v1::WriteChunksRequest request;
      request.set_upload_id(id_);
      *request.mutable_chunk() = make_chunk(offset, data);
      is_open = is_open && stream->Write(request);
      offset += data.size();
    }
    if (is_open) stream->WritesDone();
    while (hear()) continue;
    call.require(stream->Finish());
    if (committed_ < body_.size())
      throw Trouble("the server ended the stream at " + std::to_string(committed_) + " bytes");
  }

  std::string finish() {
    v1::FinishUploadRequest request;
    request.set_upload_id(id_);
    const auto answer = ask(stub(), &Service::Stub::FinishUpload, request, kDigestSeconds, cancel);
    if (answer.state() != v1::UPLOAD_STATE_QUARANTINED) return "";
    return answer.reason().empty() ? "no reason given" : answer.reason();
  }

  /// What the contract prescribes for a refusal (R-ERR-3); returns where it is for the caller to take.
  void judge(const Refusal& error) {
    const auto is = [&](const char* reason) { return error.reason == reason; };
    if (is("ROUND_CLOSED") || is("UNKNOWN_UPLOAD")) throw Dropped(error.what());
    if (is("WRONG_OFFSET") || is("CHECKSUM_MISMATCH") || is("BODY_INCOMPLETE")) throw Trouble(error.what());
    const bool is_mendable =
        is("MANIFEST_REQUIRED") || is("DIGEST_MISMATCH") || is("SUPERSEDED") || is("CHUNK_TOO_LARGE");
    if (!is_mendable || !may_repair()) return;
    if (is("CHUNK_TOO_LARGE")) chunk_bytes_ = std::max(chunk_bytes_ / 2, 1U);
    throw Trouble(error.what());
  }

  const Model& update_;
  const std::string& id_;
  std::uint32_t chunk_bytes_;
  std::string body_;                           // of the tensors that the server lacks
  std::uint64_t committed_ = 0, highest_ = 0;  // as the server said last, and at most
};

}  // namespace fedstream::client
