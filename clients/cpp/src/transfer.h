/// 4. Weights on their way: a model in, an update out. Each is one try that begins where the last one was cut.
#pragma once

#include "fedstream/v1/transfer.grpc.pb.h"
#include "model.h"

namespace fedstream::client {

/// This end, which outlives sessions and offers: the task, and the folder for what is to survive a restart. That is the
/// update that was trained last, in `update`, and what has arrived of the model that was asked for last, in `model`.
struct Site {
  Task task;
  fs::path folder;
  int failed_trainings = 0;  // since the last update that was delivered
};

/// The most bytes that a chunk to or from the server is to have, for both directions and through all sessions. A chunk
/// that is cut is lost as a whole, so a stream that was cut before one got through halves it, and one in which 16 of
/// them got through doubles it. One thread at a time transfers, and uses it.
class ChunkSize {
 public:
  std::uint64_t most() const { return most_; }

  /// A stream that began at `began` was cut. It counts once the server answers: one that is away says nothing of the
  /// line.
  void cut(std::uint64_t chunk_bytes, std::uint64_t began) { cut_ = {chunk_bytes, began}; }

  /// The server is there, and so many bytes have got through.
  void resumed(std::uint64_t have) {
    const auto [chunk_bytes, began] = std::exchange(cut_, {});
    if (chunk_bytes > 0 && have <= began) most_ = std::min(most_, std::max(chunk_bytes / 2, kLeast));
  }

  /// One stream has got so many bytes through by now.
  void run(std::uint64_t bytes) {
    while (most_ < kMaxChunkBytes && bytes >= kRunChunks * most_) most_ = std::min(2 * most_, kMaxChunkBytes);
  }

 private:
  // Below it, what a chunk costs beside its data begins to count, and connections that carry less carry no session.
  static constexpr std::uint64_t kLeast = 16 << 10;
  static constexpr std::uint64_t kRunChunks = 16;
  std::uint64_t most_ = kMaxChunkBytes;
  std::pair<std::uint64_t, std::uint64_t> cut_;  // of the last stream: bytes of its chunks, and where it began
};

/// The server's end: the connection, the terms that were agreed on it, and what was learned of the line.
struct Peer {
  std::shared_ptr<grpc::Channel> channel;
  v1::Welcome terms;
  std::shared_ptr<ChunkSize> chunk_size = std::make_shared<ChunkSize>();
};

class Transfer {
 public:
  Transfer(const Site& site, const Peer& peer, Effort& effort)
      : site_(site),
        terms_(peer.terms),
        chunk_size_(*peer.chunk_size),
        stub_(Service::NewStub(peer.channel)),
        effort_(effort) {}

  /// Get a model: its manifest, then its body, of which what has arrived lies in a file.
  Model download(const std::string& model_sha256) {
    const auto manifest = get_manifest(model_sha256);
    const auto file = site_.folder / "model" / hex(model_sha256);
    if (!fs::exists(file)) fs::remove_all(file.parent_path());
    fs::create_directories(file.parent_path());
    receive(model_sha256, file, manifest);
    const auto body = read_file(file);
    Model model;
    std::size_t at = 0;
    for (const auto& entry : manifest) {
      model.add_values(body.substr(at, entry.digest().size_bytes()));
      if (sha256(*model.values().rbegin()) != entry.digest().sha256()) {
        fs::resize_file(file, at);  // what stands before it is right, and need not travel again (R-DL-3)
        throw Damage("a tensor does not match its digest");
      }
      at += entry.digest().size_bytes();
    }
    return model;
  }

  /// Send an update: whether it is still wanted, the manifest, the tensors that the server lacks, finish. After any cut
  /// the same again (R-UP-17). @returns why it was kept aside; empty if it is in the round
  std::string upload(const Model& update) {
    v1::GetUploadStatusRequest request;
    request.set_upload_id(update.header().upload_id());
    v1::GetUploadStatusResponse status;
    require_ok(stub_->GetUploadStatus(effort_.call(kAskSeconds), request, &status));
    if (status.state() == v1::UPLOAD_STATE_CLOSED) throw Dropped("the round closed before the update was there");
    if (status.state() != v1::UPLOAD_STATE_ADMITTED && status.state() != v1::UPLOAD_STATE_QUARANTINED) send(update);
    v1::FinishUploadRequest finish;
    finish.set_upload_id(request.upload_id());
    v1::FinishUploadResponse answer;
    require_ok(stub_->FinishUpload(effort_.call(kDigestSeconds), finish, &answer));
    return answer.reason();
  }

 private:
  using Service = v1::TransferService;

  /// The end of a stream of chunks that began at `began`. Where it was cut, no reason of the server came with it.
  void end_with(const grpc::Status& status, std::uint64_t chunk_bytes, std::uint64_t began) {
    if (!status.ok() && status.error_details().empty()) chunk_size_.cut(chunk_bytes, began);
    require_ok(status);
  }

  Manifest get_manifest(const std::string& model_sha256) {
    v1::GetManifestRequest request;
    request.set_model_sha256(model_sha256);
    const auto stream = stub_->GetManifest(effort_.call(kDigestSeconds), request);
    Manifest manifest;
    v1::GetManifestResponse message;
    while (stream->Read(&message)) {
      manifest.MergeFrom(message.part().entries());
      if (manifest.size() > site_.task.schema.size()) throw Damage("the manifest is too long");
    }
    require_ok(stream->Finish());
    if (!is_manifest_of(model_sha256, manifest, site_.task.schema)) throw Damage("the manifest is not the model's");
    return manifest;
  }

  /// Get a model's body, from where the file ends that it is appended to. One that is whole is not asked for (R-DL-2).
  void receive(const std::string& model_sha256, const fs::path& file, const Manifest& manifest) {
    std::uint64_t total = 0;
    for (const auto& entry : manifest) total += entry.digest().size_bytes();
    std::ofstream arriving(file, std::ios::binary | std::ios::app);
    std::uint64_t have = fs::file_size(file);
    if (have >= total) return;
    log_line("info", "downloading a model", {{"bytes", total}, {"kept", have}});
    v1::ReadChunksRequest request;
    request.set_model_sha256(model_sha256);
    request.set_read_offset(have);
    chunk_size_.resumed(have);
    const auto began = have, most = std::min<std::uint64_t>(terms_.max_chunk_bytes(), chunk_size_.most());
    request.set_max_chunk_bytes(std::uint32_t(most));
    const auto stream = stub_->ReadChunks(effort_.call(kChunksSeconds), request);
    v1::ReadChunksResponse message;
    while (stream->Read(&message)) {
      const auto data = new_in_chunk(message.chunk(), have, total, terms_.max_chunk_bytes());
      if (!arriving.write(data.data(), std::streamsize(data.size())).flush()) fail(file);
      have += data.size();
      chunk_size_.run(have - began);
      effort_.advance();
    }
    end_with(stream->Finish(), most, began);
    if (have < total) throw Trouble("the body ended after " + std::to_string(have) + " bytes");
  }

  /// Put the manifest, and write what it turns out that the server lacks.
  void send(const Model& update) {
    v1::PutManifestResponse answer;
    const auto writer = stub_->PutManifest(effort_.call(kDigestSeconds), &answer);
    v1::PutManifestRequest header, part;
    *header.mutable_header() = update.header();
    *part.mutable_part()->mutable_entries() = manifest_of(site_.task.schema, update);
    if (writer->Write(header) && writer->Write(part)) writer->WritesDone();
    require_ok(writer->Finish());
    std::string body;
    std::int64_t before = -1;
    for (const std::int64_t index : answer.missing_tensors()) {  // R-UP-5
      if (index >= update.values_size() || index <= before) throw Refusal("it lacks tensors that there are not");
      body += update.values(int(before = index));
    }
    log_line("info", effort_.tries() == 1 ? "sending the update" : "resuming the upload",
             {{"bytes", body.size()}, {"committed", answer.committed_size()}});
    chunk_size_.resumed(answer.committed_size());
    const auto window_bytes = answer.window_bytes() > 0 ? answer.window_bytes() : terms_.window_bytes();
    for (auto committed = answer.committed_size(); committed < body.size();) {
      const auto window = std::string_view(body).substr(0, committed + window_bytes);
      const auto now = write_window(update.header().upload_id(), window, committed);
      if (now <= committed) throw Trouble("the server takes nothing after " + std::to_string(committed) + " bytes");
      committed = now;
      effort_.advance();
    }
  }

  /// Write as much as may be in flight (R-UP-9), and close our side, so that neither end waits for the other (R-UP-11).
  std::uint64_t write_window(const std::string& upload_id, std::string_view window, std::uint64_t committed) {
    const auto stream = stub_->WriteChunks(effort_.call(kChunksSeconds));
    // Smaller after each damage, since CHUNK_TOO_LARGE asks for that.
    const auto agreed = std::max(1U, terms_.max_chunk_bytes() >> effort_.repairs());
    const auto chunk_bytes = std::min<std::uint64_t>(agreed, chunk_size_.most());
    const auto began = committed;
    const auto write = [&](std::uint64_t at, std::string_view data) {
      v1::WriteChunksRequest request;
      request.set_upload_id(upload_id);
      *request.mutable_chunk() = make_chunk(at, data);
      return stream->Write(request);
    };
    // An empty one first: the server does not wait for long to hear whose stream it is, and a slow line may take a
    // minute for what follows.
    bool is_open = write(committed, {});
    for (auto at = committed; is_open && at < window.size(); at += chunk_bytes) {
      is_open = write(at, window.substr(at, chunk_bytes));
    }
    if (is_open) stream->WritesDone();
    v1::WriteChunksResponse answer;
    while (stream->Read(&answer)) committed = answer.committed_size();
    end_with(stream->Finish(), chunk_bytes, began);
    chunk_size_.run(committed - std::min(began, committed));
    return committed;
  }

  const Site& site_;
  const v1::Welcome terms_;
  ChunkSize& chunk_size_;
  const std::unique_ptr<Service::Stub> stub_;
  Effort& effort_;
};

}  // namespace fedstream::client
