/// A wish to end some work, made in one thread and seen in others.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "errors.h"

namespace fedstream::client {

class Cancel {
 public:
  void request() {
    const std::lock_guard lock(mutex_);
    requested_ = true;
    changed_.notify_all();
  }

  bool requested() const {
    const std::lock_guard lock(mutex_);
    return requested_;
  }

  /// @throws Cancelled
  void check() const {
    if (requested()) throw Cancelled();
  }

  /// Sleep, unless it is requested meanwhile.
  /// @throws Cancelled
  void sleep(double seconds) const {
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return requested_; }))
      throw Cancelled();
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool requested_ = false;  // guarded by mutex_
};

}  // namespace fedstream::client
