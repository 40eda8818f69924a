/// The work on one offer, from the base model to the acknowledged update. It outlives the streams it is agreed on.
///
///     offered --confirm--> working --acknowledged--> delivered
///     offered, working --cancel, withdraw, another offer--> dropped
///     working --cannot be done--> failed
///
/// The work is done in a thread of its own. A finished update is on disk before it is sent, so that nothing is trained
/// twice for one offer, whatever is killed in between.
#pragma once

#include <mutex>
#include <string>
#include <thread>

#include "download.h"
#include "site.h"

namespace fedstream::client {

class Job {
 public:
  enum class State { kOffered, kWorking, kDelivered, kDropped, kFailed };

  /// How the work stands. `reason` may leave this site; `failed_here` is whether it was not the server that refused.
  struct Standing {
    State state = State::kOffered;
    std::string reason;
    bool failed_here = false;
    v1::Progress progress;
    int news = 0;  // grows whenever `progress` changes
  };

  Job(v1::Offer offer, Site& site);
  ~Job() { stop(); }

  const v1::Offer& offer() const { return offer_; }
  Standing standing() const;

  /// Whether the fine-tune is done and on disk, by this process or an earlier one.
  bool is_trained() { return load().has_value(); }

  /// Begin, once the server has confirmed. Nothing happens if it has begun already.
  void start(const v1::Plan& plan, const Terms& terms);

  /// Stop: the server does not want it any more. A job that has ended stays as it is.
  void drop(const std::string& reason);

  /// Drop the work, and wait until nothing runs any more.
  void stop();

 private:
  std::optional<KeptUpdate> load();
  void run(const v1::Plan& plan, const Terms& terms);
  std::string work(const v1::Plan& plan, const Terms& terms);
  KeptUpdate train(const Manifest& base, const v1::Plan& plan);
  void show(v1::Phase phase, std::uint64_t done, std::uint64_t total);
  bool end(State state, const std::string& reason = "", bool failed_here = false);

  const v1::Offer offer_;
  Site& site_;
  Cancel cancel_;
  mutable std::mutex mutex_;
  Standing standing_;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace fedstream::client
