/// The one channel of a client, and its calls, with errors in the client's own kinds.
#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "call.h"
#include "fedstream/v1/enrolment.grpc.pb.h"
#include "fedstream/v1/negotiation.grpc.pb.h"
#include "fedstream/v1/transfer.grpc.pb.h"
#include "trust.h"

namespace fedstream::client {

/// A channel with the settings that this protocol asks for.
std::shared_ptr<grpc::Channel> make_channel(const std::string& address,
                                            const std::shared_ptr<grpc::ChannelCredentials>& credentials, bool is_tls);

/// Deadline of a call that only asks or tells: over it, the connection is taken for broken.
constexpr auto kQuick = std::chrono::seconds(60);

using Talk = Stream<grpc::ClientReaderWriter<v1::NegotiateRequest, v1::NegotiateResponse>>;
using ChunksOut = Stream<grpc::ClientReaderWriter<v1::WriteChunksRequest, v1::WriteChunksResponse>>;
using ManifestIn = Stream<grpc::ClientReader<v1::GetManifestResponse>>;
using ChunksIn = Stream<grpc::ClientReader<v1::ReadChunksResponse>>;

class Connection {
 public:
  Connection(std::string address, Trust trust) : address_(std::move(address)), trust_(std::move(trust)) {}

  /// Check who answers, and open the channel if it is not open. Comes before each session.
  void open();

  /// Let the next `open` make a new channel, with what the files say then; calls under way end on the old one.
  void close();

  v1::DescribeTaskResponse describe_task();
  v1::RenewCertificateResponse renew_certificate();
  Talk negotiate();

  // Transfers can be cancelled: when an offer is, what is under way for it ends at once.
  v1::PutManifestResponse put_manifest(const v1::UpdateHeader& header, const std::vector<v1::ManifestPart>& parts,
                                       const Cancel& cancel);
  ChunksOut write_chunks(const Cancel& cancel);
  v1::GetUploadStatusResponse upload_status(const std::string& upload_id, const Cancel& cancel);
  v1::FinishUploadResponse finish_upload(const std::string& upload_id, const Cancel& cancel);
  ManifestIn get_manifest(const std::string& model_sha256, const Cancel& cancel);
  ChunksIn read_chunks(const v1::ReadChunksRequest& request, const Cancel& cancel);

 private:
  std::shared_ptr<grpc::Channel> channel();
  template <class Service, class Request, class Answer>
  Answer ask(grpc::Status (Service::Stub::*method)(grpc::ClientContext*, const Request&, Answer*),
             const Request& request, Clock::duration deadline, const Cancel& cancel);

  const std::string address_;
  const Trust trust_;
  Watch watch_;
  const Cancel never_;
  std::mutex mutex_;
  std::shared_ptr<grpc::Channel> channel_;  // guarded by mutex_
};

}  // namespace fedstream::client
