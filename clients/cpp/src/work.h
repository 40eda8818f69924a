/// 7. The one offer that a client works on at a time. It outlives the streams it is agreed on.
///
///     offered --confirm--> working --acknowledged--> delivered
///     offered, working --cancel, withdraw, another offer--> dropped
///     working --cannot be done--> failed
///
/// The work is done in a thread of its own. A finished update is on disk before it is sent, so that nothing is trained
/// twice for one offer, whatever is killed in between.
#pragma once

#include <atomic>
#include <thread>

#include "transfer.h"

namespace fedstream::client {

using Request = v1::NegotiateRequest;

/// 0 is no limit.
struct Limits {
  std::uint32_t max_epochs = 0;
  double max_seconds = 0;
};

/// What this site has measured; 0 is not known yet.
struct Experience {
  double epoch_seconds = 0, transfer_seconds = 0;
  bool more_time_refused = false;
};

/// What to answer to an offer: accept it, decline it, or counter it with fewer epochs or more time.
inline Request answer_to(const v1::Offer& offer, const Limits& limits, const Experience& known) {
  constexpr double kSafety = 1.2;  // epochs vary with what else a machine does
  const double offered = offer.plan().epochs(), time = seconds_of(offer.time_remaining());
  double epochs = offered, more_time = 0;
  if (limits.max_epochs != 0) epochs = std::min<double>(epochs, limits.max_epochs);
  if (known.epoch_seconds > 0) {
    if (limits.max_seconds > 0) epochs = std::min(epochs, std::floor(limits.max_seconds / known.epoch_seconds));
    const double needed = epochs * known.epoch_seconds * kSafety + known.transfer_seconds;
    if (needed > time && !known.more_time_refused) {
      more_time = needed;
    } else if (needed > time) {  // fewer epochs in time are worth more than another withdrawal
      epochs = std::floor((time - known.transfer_seconds) / (known.epoch_seconds * kSafety));
    }
  }
  Request answer;
  if (epochs < 1 && offered >= 1) {
    answer.mutable_decline()->set_offer_id(offer.offer_id());
    answer.mutable_decline()->set_reason("not even one epoch fits the time, here or in this round");
  } else if (epochs < offered || more_time > 0) {
    auto& counter = *answer.mutable_counter_offer();
    counter.set_offer_id(offer.offer_id());
    counter.set_epochs(epochs < offered ? std::uint32_t(epochs) : 0);
    if (more_time > 0) *counter.mutable_time_needed() = span_of(more_time);
    counter.set_reason("what this site allows, and has time for");
  } else {
    answer.mutable_accept()->set_offer_id(offer.offer_id());
  }
  return answer;
}

/// For a log line, those of the metrics that have a value.
inline Facts with_metrics(Facts facts, const google::protobuf::RepeatedPtrField<v1::Metric>& metrics) {
  for (const auto& metric : metrics) {
    if (metric.has_value()) facts.emplace_back(metric.name(), metric.value());
  }
  return facts;
}

class Work {
 public:
  Work(Site& site, const Limits& limits) : site_(site), limits_(limits) {}
  ~Work() { stop(); }

  /// The answer to an offer. One that is worked on, or trained for, is accepted as it stands: a cut made it come again.
  Request answer(const v1::Offer& offer) {
    std::unique_lock lock(mutex_);
    const bool is_same = offer.offer_id() == offer_.offer_id();
    if (!is_same || state_ == kDelivered || state_ == kDropped) {
      lock.unlock();
      stop();  // two fine-tunes at a time would take each other's time and files
      lock.lock();
      cancel_ = std::make_unique<Cancel>();
      offer_ = offer;
      state_ = kOffered;
      progress_.Clear();
      lease_seconds_ = 0;
    }
    Request answer = answer_to(offer, limits_, experience_);
    if (state_ == kFailed) {
      answer.mutable_decline()->set_offer_id(offer.offer_id());
      answer.mutable_decline()->set_reason(reason_);
    } else if (state_ == kWorking || site_.folder.update(offer)) {
      answer.mutable_accept()->set_offer_id(offer.offer_id());
    }
    asked_for_time_ = answer.counter_offer().has_time_needed();
    log_line("info", "offer", {{"round", double(offer.round())}, {"answer", json_of(answer)}});
    return answer;
  }

  /// Begin, or go on with, what was agreed, and keep the lease from now on.
  void confirm(const v1::Confirmation& confirmation, const v1::Welcome& terms) {
    const std::lock_guard lock(mutex_);
    if (confirmation.offer_id() != offer_.offer_id()) return;
    const double lease = seconds_of(confirmation.lease());
    lease_seconds_ = lease > 0 ? lease : 60;
    is_told_ = false;
    if (state_ != kOffered) return;
    state_ = kWorking;
    thread_ = std::thread([this, plan = confirmation.plan(), terms] { run(plan, terms); });
  }

  void renew(const v1::LeaseRenewal& renewal) {
    const std::lock_guard lock(mutex_);
    const double lease = seconds_of(renewal.lease());
    if (renewal.offer_id() == offer_.offer_id() && lease_seconds_ > 0 && lease > 0) lease_seconds_ = lease;
  }

  /// The server does not want it (R-RND-6).
  void drop(const std::string& offer_id, const std::string& reason, bool is_withdrawn) {
    if (offer_id != offer_.offer_id()) return;
    if (is_withdrawn && asked_for_time_) {
      const std::lock_guard lock(mutex_);
      experience_.more_time_refused = true;
    }
    log_line("info", "the server does not want this round's update", {{"because", reason}});
    end(kDropped);
    cancel_->request();
  }

  /// Drop the work, and wait until nothing runs any more.
  void stop() {
    end(kDropped);
    cancel_->request();
    if (thread_.joinable()) thread_.join();
  }

  /// A new session: it keeps no lease before the work is confirmed in it.
  void pause_signs() {
    const std::lock_guard lock(mutex_);
    lease_seconds_ = 0;
  }

  /// The server is back.
  void hurry() { cancel_->hurry(); }

  /// What is to be said of the work now: how it goes, when it got on and often enough to keep the lease (R-RND-10), or
  /// that it failed. From another thread.
  std::optional<Request> sign_of_life() {
    const std::lock_guard lock(mutex_);
    if (lease_seconds_ == 0) return std::nullopt;
    Request request;
    if (state_ == kWorking) {
      const double due = is_told_ ? lease_seconds_ / 3 : std::min(1.0, lease_seconds_ / 6);
      if (seconds_since(told_at_) < due) return std::nullopt;
      told_at_ = Clock::now();
      is_told_ = true;
      *request.mutable_progress() = progress_;
      request.mutable_progress()->set_offer_id(offer_.offer_id());
      return request;
    }
    lease_seconds_ = 0;
    if (state_ != kFailed) return std::nullopt;
    request.mutable_failure()->set_offer_id(offer_.offer_id());
    request.mutable_failure()->set_reason(reason_);
    return request;
  }

  /// @throws Stop the work failed several times in a row
  void check_health() const {
    if (failures_ >= 3) throw Stop(Exit::kTrainingFailed, "the work failed 3 times in a row; the log says why");
  }

  Experience experience() const {
    const std::lock_guard lock(mutex_);
    return experience_;
  }

 private:
  enum State { kOffered, kWorking, kDelivered, kDropped, kFailed };

  /// Whether it had not ended already. @param reason may leave this site: no file names, no paths
  bool end(State state, const std::string& reason = "") {
    const std::lock_guard lock(mutex_);
    if (state_ != kOffered && state_ != kWorking) return false;
    state_ = state;
    reason_ = reason;
    return true;
  }

  void show(const v1::Progress& progress) {
    const std::lock_guard lock(mutex_);
    progress_ = progress;
    is_told_ = false;
  }

  OnBytes showing(v1::Phase phase) {
    return [this, phase](std::uint64_t done, std::uint64_t total) {
      v1::Progress progress;
      progress.set_phase(phase);
      progress.set_fraction(total == 0 ? 1.0F : float(double(done) / double(total)));
      show(progress);
    };
  }

  void run(const v1::Plan& plan, const v1::Welcome& terms) {
    const double round = offer_.round();
    try {
      const auto quarantined = work(plan, terms);
      failures_ = 0;
      if (!end(kDelivered)) return;
      if (quarantined.empty()) return log_line("info", "update delivered", {{"round", round}});
      log_line("warning", "update delivered", {{"round", round}, {"kept_aside_because", quarantined}});
    } catch (const Dropped& error) {
      if (end(kDropped)) log_line("info", "the work on this round ended", {{"round", round}, {"because", error.what()}});
    } catch (const std::exception& error) {
      const auto* refusal = dynamic_cast<const Refusal*>(&error);
      const auto why = refusal != nullptr ? "the server refused a call: " + refusal->reason.substr(0, 64) : "the work failed at the site";
      if (!end(kFailed, why)) return;
      failures_ = refusal == nullptr ? failures_ + 1 : 0;
      log_line("error", "the work on this round ended", {{"round", round}, {"because", error.what()}});
    }
  }

  /// @returns why the update was kept aside; empty if it is in the round
  std::string work(const v1::Plan& plan, const v1::Welcome& terms) {
    if (plan.epochs() < 1 || plan.batch_size() < 1 || !std::isfinite(plan.learning_rate())) {  // R-RND-13
      throw std::runtime_error("the plan is not sound");
    }
    const auto began = Clock::now();
    const auto& sha256 = offer_.base_model().model_digest().sha256();
    const auto base = Download(site_, sha256, terms, *cancel_, showing(v1::PHASE_DOWNLOADING)).run();
    const double fetching = seconds_since(began), round = offer_.round();
    auto update = site_.folder.update(offer_);
    if (update) {
      log_line("info", "this round is trained already; sending what was kept", {{"round", round}});
    } else {
      update = train(base, plan);
    }
    update->mutable_header()->set_upload_id(offer_.upload_id());
    const auto sending = Clock::now();
    const auto quarantined = Upload(site_, *update, terms, *cancel_, showing(v1::PHASE_UPLOADING)).run();
    const std::lock_guard lock(mutex_);
    experience_.transfer_seconds = fetching + seconds_since(sending);
    return quarantined;
  }

  Model train(const Model& base, const v1::Plan& plan) {
    const double round = offer_.round();
    log_line("info", "training", {{"round", round}, {"epochs", double(plan.epochs())}});
    const auto began = Clock::now();
    auto tuned = site_.task.fine_tune(base.values(), plan, [this](const auto& progress) { show(progress); }, *cancel_);
    Model update;
    *update.mutable_offer() = offer_;
    for (auto& values : tuned.values) {
      *update.add_entries() = entry_of(site_.task.schema[update.entries_size()], values);
      update.add_values(std::move(values));
    }
    auto& header = *update.mutable_header() = tuned.header;
    header.set_num_tensors(std::uint32_t(update.entries_size()));
    *header.mutable_model_digest() = model_digest(update.entries());
    header.set_training_seconds(seconds_since(began));
    site_.folder.keep_update(update);
    log_line("info", "trained", with_metrics({{"round", round}, {"epochs", double(header.epochs())},
                                              {"model", hex(header.model_digest().sha256())}}, header.metrics()));
    const std::lock_guard lock(mutex_);
    experience_.epoch_seconds = header.training_seconds() / std::max(1U, header.epochs());
    return update;
  }

  Site& site_;
  const Limits limits_;
  std::unique_ptr<Cancel> cancel_ = std::make_unique<Cancel>();
  std::thread thread_;
  bool asked_for_time_ = false;
  std::atomic<int> failures_ = 0;

  mutable std::mutex mutex_;  // guards what follows; the offer changes only while no work is going on
  v1::Offer offer_;
  State state_ = kDropped;
  std::string reason_;
  v1::Progress progress_;
  Experience experience_;
  double lease_seconds_ = 0;  // 0 while nothing is to be told
  bool is_told_ = false;      // whether the progress as it is now was told
  Clock::time_point told_at_;
};

}  // namespace fedstream::client
