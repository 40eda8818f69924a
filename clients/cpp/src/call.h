/// Calls of gRPC that can be ended from outside: when nobody wants them any more, or when nothing moves on them.
#pragma once

#include <grpcpp/client_context.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "cancel.h"
#include "errors.h"
#include "status.h"

namespace fedstream::client {

using Clock = std::chrono::steady_clock;

/// How long a stream of chunks may stand still before it is taken for broken.
constexpr auto kStall = std::chrono::seconds(120);

class Call;

/// The thread that looks after the calls which are under way: gRPC's blocking calls do not wake for anything else.
class Watch {
 public:
  Watch();
  ~Watch();

 private:
  friend class Call;
  void run();

  std::mutex mutex_;
  std::set<Call*> calls_;  // guarded by mutex_
  Cancel ending_;
  std::thread thread_;
};

/// A call from its beginning to its end.
class Call {
 public:
  Call(Watch& watch, const Cancel& cancel, Clock::duration stall);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  /// Something came or went.
  void moved() { due_ = (Clock::now() + stall_.load()).time_since_epoch().count(); }

  /// Take it for broken sooner or later than was said at first.
  void allow(Clock::duration stall) {
    stall_ = stall;
    moved();
  }

  /// @throws Cancelled, Refusal, Trouble it did not end with OK
  void require(const grpc::Status& status) const {
    if (!status.ok()) cancel_.check();  // what was cut because nobody wants it any more is no trouble
    require_ok(status);
  }

  grpc::ClientContext context;

 private:
  friend class Watch;
  Watch& watch_;
  const Cancel& cancel_;
  std::atomic<Clock::duration> stall_;
  std::atomic<Clock::rep> due_;
};

/// A stream of a call; `Rpc` is gRPC's reader or reader and writer. One thread at a time, but for `try_write`.
template <class Rpc>
class Stream {
 public:
  /// `begin` opens it on a context.
  template <class Begin>
  Stream(Watch& watch, const Cancel& cancel, Clock::duration stall, Begin begin)
      : call_(std::make_unique<Call>(watch, cancel, stall)), rpc_(begin(&call_->context)) {}
  ~Stream() {
    if (rpc_ == nullptr || ended_) return;
    call_->context.TryCancel();
    rpc_->Finish();
  }
  Stream(Stream&&) noexcept = default;

  /// The next message; false if the server has ended the stream with OK.
  template <class Message>
  bool read(Message* message) {
    call_->moved();
    if (!ended_ && rpc_->Read(message)) return true;
    end();
    return false;
  }

  /// @throws Refusal, Trouble the stream has ended
  template <class Message>
  void write(const Message& message) {
    if (try_write(message)) return;
    end();
    throw Trouble("the server ended the stream");
  }

  /// As `write`, beside a thread that reads and hears why it failed.
  template <class Message>
  bool try_write(const Message& message) {
    call_->moved();
    return rpc_->Write(message);
  }

  /// Say that nothing more will be written.
  void writes_done() { rpc_->WritesDone(); }

  /// End it from another thread: whoever reads hears of it.
  void cancel() { call_->context.TryCancel(); }

  void allow(Clock::duration stall) { call_->allow(stall); }

 private:
  void end() {
    if (std::exchange(ended_, true)) return;
    call_->require(rpc_->Finish());
  }

  std::unique_ptr<Call> call_;
  std::unique_ptr<Rpc> rpc_;
  bool ended_ = false;
};

}  // namespace fedstream::client
