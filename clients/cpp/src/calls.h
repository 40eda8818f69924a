/// 2. The connection to the server, calls on it, what their ends mean, and coming back after one.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <random>

#include "../joining/joining.h"
#include "own.pb.h"

namespace fedstream::client {

// How long a call may take before the connection is taken for broken. A stream of chunks is resumed where it was cut,
// so that a long one is simply cut now and then; thus none stands still for longer (R-TIM-5).
constexpr int kAskSeconds = 60, kDigestSeconds = 600, kChunksSeconds = 120;

inline double seconds_of(const google::protobuf::Duration& span) { return double(span.seconds()) + span.nanos() / 1e9; }

/// Nothing for OK; else what the contract's table of errors asks for (R-ERR-2, R-ERR-3), as an error of its kind. Only
/// a decision of the server carries an ErrorInfo of our domain; what a proxy mangled does not.
inline void require_ok(const grpc::Status& status) {
  if (status.ok()) return;
  RpcStatus details;
  ErrorInfo info;
  RetryInfo retry;
  if (details.ParseFromString(status.error_details())) {
    for (const auto& detail : details.details()) {
      const auto type = detail.type_url().substr(detail.type_url().rfind('/') + 1);
      if (type == "google.rpc.ErrorInfo") info.ParseFromString(detail.value());
      if (type == "google.rpc.RetryInfo") retry.ParseFromString(detail.value());
    }
  }
  if (info.domain() != "fedstream.v1") throw Trouble("the call was cut: " + status.error_message());
  const auto is = [&](auto... reasons) { return ((info.reason() == reasons) || ...); };
  const auto words = info.reason() + ": " + details.message();
  if (is("UNAUTHENTICATED", "PERMISSION_DENIED", "NAME_MISMATCH")) throw Stop(Exit::kUntrusted, words);
  if (is("ROUND_CLOSED", "UNKNOWN_UPLOAD")) throw Dropped(words);
  if (is("LIMIT_EXCEEDED", "WRONG_OFFSET", "CHECKSUM_MISMATCH", "BODY_INCOMPLETE", "MANIFEST_REQUIRED")) {
    throw Trouble(words, std::min(seconds_of(retry.retry_delay()), 86'400.0));
  }
  if (is("DIGEST_MISMATCH", "CHUNK_TOO_LARGE")) throw Damage(words);
  if (is("SUPERSEDED")) throw Superseded(words);
  throw Refusal(words);
}

/// One thing that is tried until it is done, by one thread. Another may cancel or hurry it.
class Effort {
 public:
  /// @param patience_seconds for how long to try without getting further
  explicit Effort(double patience_seconds = INFINITY) : patience_seconds_(patience_seconds) {}

  /// Nobody wants it any more: what sleeps wakes up, what is called is cut.
  void cancel() {
    const std::lock_guard lock(mutex_);
    is_cancelled_ = true;
    if (call_ != nullptr) call_->TryCancel();
    changed_.notify_all();
  }

  /// It got further, or the server is back: waits begin anew, and one that is going on ends.
  void advance() {
    const std::lock_guard lock(mutex_);
    has_advanced_ = true;
    changed_.notify_all();
  }

  /// @throws Dropped it was cancelled
  void sleep(double seconds) const {
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, Seconds(seconds), [&] { return is_cancelled_; })) throw Dropped("not wanted any more");
  }
  void check() const { sleep(0); }

  /// The context of the next call, which lasts until the one after it. @throws Dropped
  grpc::ClientContext* call(int seconds) {
    const std::lock_guard lock(mutex_);
    if (is_cancelled_) throw Dropped("not wanted any more");
    call_ = std::make_unique<grpc::ClientContext>();
    call_->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(seconds));
    return call_.get();
  }

  /// How often something was damaged, and how often it was tried at all.
  int repairs() const { return repairs_; }
  int tries() const { return tries_; }

  /// Call `once`, which begins where the last try was cut, until it returns, or throws what is no Trouble.
  template <class Once>
  auto until_done(const std::string& doing, Once once) {
    auto since = Clock::now();
    for (double wait = 0.5;; wait = std::min(wait * 2, 30.0)) {  // R-TIM-5
      check();
      try {
        ++tries_;
        return once();
      } catch (const Trouble& error) {
        check();  // what was cut because nobody wants it any more is no trouble
        if (dynamic_cast<const Damage*>(&error) != nullptr && ++repairs_ > 3) throw;
        if (has_advanced_.exchange(false)) wait = 0.5, since = Clock::now();
        // Who was cut off together comes back apart.
        const double rest = wait - error.at_least + std::uniform_real_distribution<>(0, 0.5)(random_);
        if (seconds_since(since) + error.at_least + std::max(0.0, rest) > patience_seconds_) throw;
        log_line("warning", "trying again", {{"doing", doing}, {"because", error.what()}});
        sleep(error.at_least);  // R-TIM-6
        std::unique_lock lock(mutex_);
        changed_.wait_for(lock, Seconds(rest), [this] { return is_cancelled_ || has_advanced_; });
      }
    }
  }

  /// Do what writes; where the disk refuses, say so, and try again: somebody may make space meanwhile.
  /// @throws fs::filesystem_error it refuses for another reason; Dropped
  template <class Write>
  void until_written(const std::string& waiting, Write write) const {
    for (std::string told;; sleep(2)) {
      try {
        return write();
      } catch (const fs::filesystem_error& error) {
        const auto number = error.code().value();
        const bool may_pass =
            number == ENOSPC || number == EDQUOT || number == EFBIG || number == EROFS || number == EIO;
        if (!may_pass) throw;
        if (std::exchange(told, error.what()) != error.what()) {
          log_line("warning", waiting, {{"because", error.what()}, {"advice", "make space there"}});
        }
      }
    }
  }

 private:
  const double patience_seconds_;
  std::random_device random_;
  int repairs_ = 0, tries_ = 0;
  std::atomic<bool> has_advanced_ = false;
  bool is_cancelled_ = false;
  std::unique_ptr<grpc::ClientContext> call_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
};

/// A channel with the settings that this protocol asks for, to a server that was looked at.
inline std::shared_ptr<grpc::Channel> make_channel(const std::string& address, const Trust& trust) {
  grpc::ChannelArguments options;
  // A NAT forgets an idle connection after minutes, some after one; a ping each half minute also finds a dead peer.
  options.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  options.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  options.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  options.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  options.SetInt(GRPC_ARG_MAX_METADATA_SIZE, 16'384);
  // Waiting is what an `Effort` does, with a log line that says why: gRPC is to add none of its own, and a new channel
  // is to be a new connection, not one that an earlier channel has left.
  options.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  options.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
  options.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  if (!trust.plaintext) options.SetSslTargetNameOverride(kServerName);
  return grpc::CreateCustomChannel(address, look_at(address, trust), options);
}

}  // namespace fedstream::client
