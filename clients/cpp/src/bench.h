/// The one offer a client works on at a time, and the decisions about it. It outlives the negotiation's streams.
#pragma once

#include <memory>

#include "job.h"
#include "reply.h"

namespace fedstream::client {

class Bench {
 public:
  Bench(Site& site, const SiteLimits& limits) : site_(site), limits_(limits) {}

  /// The answer to an offer. One that is worked on, or trained for, is accepted as it stands: a cut made it come again.
  v1::NegotiateRequest consider(const v1::Offer& offer);

  /// Begin, or go on with, what was agreed; whether it is about the latest offer.
  bool confirm(const v1::Confirmation& confirmation, const Terms& terms);

  void withdraw(const v1::Withdrawal& withdrawal);
  void cancel(const v1::Cancellation& cancellation) { drop(cancellation.offer_id(), cancellation.reason()); }

  /// @throws Stop the work failed several times in a row
  void check_health();

  /// Drop what is being done, and wait until it is.
  void close();

  /// The work on that offer, if it is the latest.
  std::shared_ptr<Job> job_of(const std::string& offer_id) const;

 private:
  void drop(const std::string& offer_id, const std::string& reason);

  Site& site_;
  const SiteLimits limits_;
  mutable std::mutex mutex_;
  std::shared_ptr<Job> job_;  // guarded by mutex_: the session's second thread looks at it
  bool asked_for_time_ = false;
  std::string counted_;  // the offer whose end was counted last
  int failures_ = 0;
};

}  // namespace fedstream::client
