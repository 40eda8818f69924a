#include "bench.h"

#include "limits.h"
#include "spans.h"

namespace fedstream::client {
namespace {

/// Failed trainings in a row after which a person should have a look.
constexpr int kMostFailures = 3;

}  // namespace

v1::NegotiateRequest Bench::consider(const v1::Offer& offer) {
  v1::NegotiateRequest answer;
  const auto accept = [&] { return answer.mutable_accept()->set_offer_id(offer.offer_id()), answer; };
  auto job = job_of(offer.offer_id());
  const auto standing = job == nullptr ? Job::Standing() : job->standing();
  const auto decline = [&](const std::string& reason) {
    answer.mutable_decline()->set_offer_id(offer.offer_id());
    answer.mutable_decline()->set_reason(limits::clip_reason(reason));
    return answer;
  };
  if (standing.state == Job::State::kFailed) return decline(standing.reason);
  if (standing.state == Job::State::kWorking) return accept();
  if (job == nullptr || standing.state != Job::State::kOffered) {
    // Another offer; or one that was delivered or dropped, which the server wants after all. Two fine-tunes at a time
    // would take each other's time and files.
    job = nullptr;
    close();
    const std::lock_guard lock(mutex_);
    job = job_ = std::make_shared<Job>(offer, site_);
  }
  if (job->is_trained()) return accept();
  const auto& experience = site_.experience;
  const auto terms = reply(offer.plan().epochs(), seconds_of(offer.time_remaining()), limits_,
                           {experience.epoch_seconds, experience.transfer_seconds, experience.more_time_refused});
  const auto how = terms.accepts() ? "accepted" : !terms.decline.empty() ? terms.decline : terms.reason;
  site_.log.info("offer", {{"round", double(offer.round())}, {"answer", how}});
  asked_for_time_ = terms.seconds > 0;
  if (terms.accepts()) return accept();
  if (!terms.decline.empty()) return decline(terms.decline);
  auto& counter = *answer.mutable_counter_offer();
  counter.set_offer_id(offer.offer_id());
  counter.set_epochs(terms.epochs);
  if (terms.seconds > 0) *counter.mutable_time_needed() = span_of(terms.seconds);
  counter.set_reason(limits::clip_reason(terms.reason));
  return answer;
}

bool Bench::confirm(const v1::Confirmation& confirmation, const Terms& terms) {
  const auto job = job_of(confirmation.offer_id());
  if (job != nullptr) job->start(confirmation.plan(), terms);
  return job != nullptr;
}

void Bench::withdraw(const v1::Withdrawal& withdrawal) {
  if (asked_for_time_) site_.experience.more_time_refused = true;
  drop(withdrawal.offer_id(), withdrawal.reason());
}

void Bench::drop(const std::string& offer_id, const std::string& reason) {
  const auto job = job_of(offer_id);
  if (job == nullptr) return;
  site_.log.info("the server does not want this round's update", {{"because", reason}});
  job->drop(reason);
}

void Bench::check_health() {
  std::shared_ptr<Job> job;
  {
    const std::lock_guard lock(mutex_);
    job = job_;
  }
  if (job == nullptr || job->offer().offer_id() == counted_) return;
  const auto standing = job->standing();
  if (standing.state != Job::State::kDelivered && standing.state != Job::State::kFailed) return;
  counted_ = job->offer().offer_id();
  failures_ = standing.failed_here ? failures_ + 1 : 0;
  if (failures_ < kMostFailures) return;
  throw Stop(Exit::kTrainingFailed,
             "the work failed " + std::to_string(kMostFailures) + " times in a row; the log says why");
}

void Bench::close() {
  std::shared_ptr<Job> job;
  {
    const std::lock_guard lock(mutex_);
    std::swap(job, job_);
  }
  // The second thread may still look at it for a moment: the work ends here all the same.
  if (job != nullptr) job->stop();
}

std::shared_ptr<Job> Bench::job_of(const std::string& offer_id) const {
  const std::lock_guard lock(mutex_);
  return job_ != nullptr && job_->offer().offer_id() == offer_id ? job_ : nullptr;
}

}  // namespace fedstream::client
