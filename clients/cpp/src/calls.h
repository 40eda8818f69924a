/// 2. The connection to the server, calls on it, what their ends mean, and coming back after one.
#pragma once

#include <grpcpp/create_channel.h>

#include <algorithm>
#include <random>

#include "../joining/joining.h"
#include "own.pb.h"

namespace fedstream::client {

// How long a call may take before the connection is taken for broken. A stream of chunks is resumed where it was cut,
// so that a long one is simply cut now and then; thus none stands still for longer (R-TIM-5).
constexpr int kAskSeconds = 60, kDigestSeconds = 600, kChunksSeconds = 120;

inline double seconds_of(const google::protobuf::Duration& span) { return double(span.seconds()) + span.nanos() / 1e9; }

/// R-TIM-7: never longer than a span may be.
inline google::protobuf::Duration span_of(double seconds) {
  google::protobuf::Duration span;
  span.set_seconds(std::int64_t(std::ceil(std::min(seconds, 315'576'000'000.0))));
  return span;
}

/// Nothing for OK. Only a decision of the server carries an ErrorInfo of our domain; what a proxy mangled does not.
/// @throws Refusal the server decided
/// @throws Trouble anything else
inline void require_ok(const grpc::Status& status) {
  if (status.ok()) return;
  RpcStatus details;
  ErrorInfo info;
  RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(1);
  if (details.ParseFromString(status.error_details())) {
    for (const auto& detail : details.details()) {
      const auto type = detail.type_url().substr(detail.type_url().rfind('/') + 1);
      if (type == "google.rpc.ErrorInfo") info.ParseFromString(detail.value());
      if (type == "google.rpc.RetryInfo") retry.ParseFromString(detail.value());
    }
  }
  const double seconds = std::clamp(seconds_of(retry.retry_delay()), 0.0, 86'400.0);
  if (info.domain() == "fedstream.v1") throw Refusal(info.reason(), details.message(), seconds);
  throw Trouble("the call was cut (gRPC code " + std::to_string(status.error_code()) + ": " + status.error_message() +
                ")");
}

/// A channel with the settings that this protocol asks for.
inline std::shared_ptr<grpc::Channel> make_channel(const std::string& address, const Trust& trust) {
  grpc::ChannelArguments options;
  // A NAT forgets an idle connection after minutes, some after one; a ping each half minute also finds a dead peer.
  options.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  options.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  options.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  options.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  options.SetInt(GRPC_ARG_MAX_METADATA_SIZE, 16'384);
  // Coming back is done by `until_done`, with a log line that says why: gRPC is not to add waits of its own.
  options.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  options.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  options.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
  // A new channel is a new connection, not one that an earlier channel has left.
  options.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  if (!trust.plaintext) options.SetSslTargetNameOverride(kServerName);
  return grpc::CreateCustomChannel(address, look_at(address, trust), options);
}

/// The one channel of a client. Threads may share it.
class Link {
 public:
  explicit Link(const Access& access) : access_(access) {}

  /// Check who answers, and make a new channel unless there is one that works: an old one would go on waiting.
  void open() {
    const auto now = std::atomic_load(&channel_);
    if (now != nullptr && now->GetState(false) == GRPC_CHANNEL_READY) return;
    std::atomic_store(&channel_, make_channel(access_.server, access_.trust));
  }

  /// Let the next `open` make a new channel, with what the files say then; calls under way end on the old one.
  void close() { std::atomic_store(&channel_, {}); }

  /// @throws Trouble there is none just now
  std::shared_ptr<grpc::Channel> channel() const {
    if (auto now = std::atomic_load(&channel_)) return now;
    throw Trouble("the connection is being made anew");
  }

 private:
  const Access access_;
  std::shared_ptr<grpc::Channel> channel_;
};

/// A call from its beginning to its end, which `cancel` cuts.
class Call {
 public:
  Call(int seconds, Cancel& cancel) : cancel_(cancel) {
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(seconds));
    cancel.add(&context);
  }
  ~Call() { cancel_.remove(&context); }

  /// @throws Dropped, Refusal, Trouble it did not end with OK
  void require(const grpc::Status& status) const {
    if (!status.ok()) cancel_.check();  // what was cut because nobody wants it any more is no trouble
    require_ok(status);
  }

  grpc::ClientContext context;

 private:
  Cancel& cancel_;
};

/// A call with one request and one answer.
template <class Stub, class Request, class Answer>
Answer ask(const std::unique_ptr<Stub>& stub,
           grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Answer*), const Request& request,
           int seconds, Cancel& cancel) {
  Call call(seconds, cancel);
  Answer answer;
  call.require((stub.get()->*method)(&call.context, request, &answer));
  return answer;
}

struct Patience {
  double give_up_after_seconds = INFINITY;  // without any progress
  double first_seconds = 0.5;
  double longest_seconds = 30;
};

/// How long to wait before the next try (R-TIM-5); `random` is 0 to 1: who was cut off together comes back apart.
inline double wait_seconds(int tries, const Patience& patience, double random) {
  return std::min(patience.first_seconds * std::pow(2.0, std::min(tries, 30)), patience.longest_seconds) +
         patience.first_seconds * random;
}

/// Try `once`, which resumes where the last try got to, until it returns. Trouble and LIMIT_EXCEEDED are waited for;
/// any other refusal is the server's last word.
/// @param how_far grows with every progress, which begins the waits anew
template <class Once, class HowFar>
auto until_done(const std::string& doing, const Patience& patience, Cancel& cancel, HowFar how_far, Once once) {
  std::minstd_rand random(std::random_device{}());
  auto mark = how_far();
  auto since = Clock::now();
  for (int tries = 0;; ++tries) {
    cancel.check();
    double at_least = 0;
    std::string because;
    try {
      return once();
    } catch (const Trouble& error) {
      because = error.what();
    } catch (const Refusal& error) {
      if (error.reason != "LIMIT_EXCEEDED") throw;
      at_least = error.retry_seconds;
      because = error.what();
    }
    cancel.check();
    if (how_far() > mark) {
      mark = how_far();
      tries = 0;
      since = Clock::now();
    }
    if (seconds_since(since) > patience.give_up_after_seconds) throw Trouble(because);
    log_line("warning", "trying again", {{"doing", doing}, {"because", because}});
    cancel.sleep(at_least);  // R-TIM-6
    const double jitter = std::uniform_real_distribution<double>(0, 1)(random);
    if (cancel.sleep(std::max(0.0, wait_seconds(tries, patience, jitter) - at_least), true)) tries = -1;
  }
}

}  // namespace fedstream::client
