#include "call.h"

namespace fedstream::client {
namespace {

constexpr double kLookSeconds = 0.05;

}  // namespace

Watch::Watch() : thread_([this] { run(); }) {}

Watch::~Watch() {
  ending_.request();
  thread_.join();
}

void Watch::run() {
  try {
    for (;;) {
      ending_.sleep(kLookSeconds);
      const std::lock_guard lock(mutex_);
      const auto now = Clock::now().time_since_epoch().count();
      for (auto* call : calls_) {
        if (call->due_ < now || call->cancel_.requested()) call->context.TryCancel();
      }
    }
  } catch (const Cancelled&) {
    return;
  }
}

Call::Call(Watch& watch, const Cancel& cancel, Clock::duration stall) : watch_(watch), cancel_(cancel), stall_(stall) {
  moved();
  const std::lock_guard lock(watch_.mutex_);
  watch_.calls_.insert(this);
}

Call::~Call() {
  const std::lock_guard lock(watch_.mutex_);
  watch_.calls_.erase(this);
}

}  // namespace fedstream::client
