#include "connection.h"

#include <grpcpp/create_channel.h>

#include "limits.h"

namespace fedstream::client {
namespace {

/// Deadline of a call in which the server digests a model.
constexpr auto kLong = std::chrono::seconds(600);
constexpr auto kForEver = std::chrono::hours(24 * 365 * 10);

auto within(Clock::duration span) { return std::chrono::system_clock::now() + span; }

}  // namespace

std::shared_ptr<grpc::Channel> make_channel(const std::string& address,
                                            const std::shared_ptr<grpc::ChannelCredentials>& credentials, bool is_tls) {
  grpc::ChannelArguments options;
  // A NAT forgets an idle connection after minutes, some after one; a ping each half minute also finds a dead peer.
  options.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  options.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  options.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  options.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  options.SetInt(GRPC_ARG_MAX_METADATA_SIZE, limits::kMaxMetadataBytes);
  // Coming back is done by `backoff.h`, with a log line that says why.
  options.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  options.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  options.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 5'000);
  // A new channel is a new connection, not one that an earlier channel has left.
  options.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  if (is_tls) options.SetSslTargetNameOverride(kServerName);
  return grpc::CreateCustomChannel(address, credentials, options);
}

void Connection::open() {
  const auto credentials = look_at(address_, trust_);
  const std::lock_guard lock(mutex_);
  if (channel_ == nullptr) channel_ = make_channel(address_, credentials, !trust_.plaintext);
}

void Connection::close() {
  const std::lock_guard lock(mutex_);
  channel_ = nullptr;
}

std::shared_ptr<grpc::Channel> Connection::channel() {
  const std::lock_guard lock(mutex_);
  if (channel_ == nullptr) throw Trouble("the connection is being made anew");
  return channel_;
}

/// A call with one request and one answer, within a deadline.
template <class Service, class Request, class Answer>
Answer Connection::ask(grpc::Status (Service::Stub::*method)(grpc::ClientContext*, const Request&, Answer*),
                       const Request& request, Clock::duration deadline, const Cancel& cancel) {
  Call call(watch_, cancel, kForEver);
  call.context.set_deadline(within(deadline));
  Answer answer;
  const auto stub = Service::NewStub(channel());
  call.require((stub.get()->*method)(&call.context, request, &answer));
  return answer;
}

v1::DescribeTaskResponse Connection::describe_task() {
  return ask<v1::NegotiationService>(&v1::NegotiationService::Stub::DescribeTask, v1::DescribeTaskRequest(), kQuick,
                                     never_);
}

v1::RenewCertificateResponse Connection::renew_certificate() {
  return ask<v1::CertificateService>(&v1::CertificateService::Stub::RenewCertificate, v1::RenewCertificateRequest(),
                                     kQuick, never_);
}

Talk Connection::negotiate() {
  return {watch_, never_, kForEver, [this](grpc::ClientContext* context) {  // R-TIM-4: no deadline
            return v1::NegotiationService::NewStub(channel())->Negotiate(context);
          }};
}

v1::PutManifestResponse Connection::put_manifest(const v1::UpdateHeader& header,
                                                 const std::vector<v1::ManifestPart>& parts, const Cancel& cancel) {
  Call call(watch_, cancel, kForEver);
  call.context.set_deadline(within(kLong));
  v1::PutManifestResponse answer;
  const auto writer = v1::TransferService::NewStub(channel())->PutManifest(&call.context, &answer);
  v1::PutManifestRequest request;
  *request.mutable_header() = header;
  bool is_open = writer->Write(request);
  for (auto part = parts.begin(); is_open && part != parts.end(); ++part) {
    *request.mutable_part() = *part;
    is_open = writer->Write(request);
  }
  if (is_open) writer->WritesDone();
  call.require(writer->Finish());
  return answer;
}

ChunksOut Connection::write_chunks(const Cancel& cancel) {
  return {watch_, cancel, kStall, [this](grpc::ClientContext* context) {
            return v1::TransferService::NewStub(channel())->WriteChunks(context);
          }};
}

v1::GetUploadStatusResponse Connection::upload_status(const std::string& upload_id, const Cancel& cancel) {
  v1::GetUploadStatusRequest request;
  request.set_upload_id(upload_id);
  return ask<v1::TransferService>(&v1::TransferService::Stub::GetUploadStatus, request, kQuick, cancel);
}

v1::FinishUploadResponse Connection::finish_upload(const std::string& upload_id, const Cancel& cancel) {
  v1::FinishUploadRequest request;
  request.set_upload_id(upload_id);
  return ask<v1::TransferService>(&v1::TransferService::Stub::FinishUpload, request, kLong, cancel);
}

ManifestIn Connection::get_manifest(const std::string& model_sha256, const Cancel& cancel) {
  v1::GetManifestRequest request;
  request.set_model_sha256(model_sha256);
  return {watch_, cancel, kLong, [&](grpc::ClientContext* context) {
            context->set_deadline(within(kLong));
            return v1::TransferService::NewStub(channel())->GetManifest(context, request);
          }};
}

ChunksIn Connection::read_chunks(const v1::ReadChunksRequest& request, const Cancel& cancel) {
  return {watch_, cancel, kStall, [&](grpc::ClientContext* context) {
            return v1::TransferService::NewStub(channel())->ReadChunks(context, request);
          }};
}

}  // namespace fedstream::client
