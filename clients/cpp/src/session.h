/// 7. One Negotiate stream. A thread listens for the next message, since listening blocks; the owner does all else.
#pragma once

#include "fedstream/v1/negotiation.grpc.pb.h"
#include "work.h"

namespace fedstream::client {

class Session {
 public:
  explicit Session(const std::shared_ptr<grpc::Channel>& channel)  // R-TIM-4: without a deadline
      : stream_(v1::NegotiationService::NewStub(channel)->Negotiate(&context_)) {
    listen();
  }
  ~Session() { context_.TryCancel(); }

  /// If it cannot be written the stream has ended, and `next` says how.
  void say(const Request& message) { stream_->Write(message); }

  /// The next message; none if none came in that time.
  /// @throws what the stream has ended with
  std::optional<v1::NegotiateResponse> next(double wait_seconds) {
    if (has_come_.wait_for(Seconds(wait_seconds)) != std::future_status::ready) return std::nullopt;
    if (!has_come_.get()) {
      require_ok(stream_->Finish());
      throw Trouble("the server ended the session");
    }
    auto message = std::exchange(message_, {});
    listen();
    return message;
  }

  /// Close our side, and wait some seconds for the server to close its own: then all that was said has come to it.
  void close() {
    stream_->WritesDone();
    while (has_come_.wait_for(Seconds(5)) == std::future_status::ready && has_come_.get()) listen();
  }

 private:
  void listen() {
    has_come_ = std::async(std::launch::async, [this] { return stream_->Read(&message_); });
  }

  grpc::ClientContext context_;
  const std::unique_ptr<grpc::ClientReaderWriter<Request, v1::NegotiateResponse>> stream_;
  v1::NegotiateResponse message_;
  std::future<bool> has_come_;  // the last, since its end waits for the thread's
};

}  // namespace fedstream::client
