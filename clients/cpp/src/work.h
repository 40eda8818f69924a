/// 6. The one offer that a client works on at a time. It outlives the streams it is agreed on.
///
///     offered --confirm--> working --acknowledged--> delivered
///     offered, working --cancel, withdraw, another offer--> dropped
///     working --cannot be done--> failed
///
/// The work is done in a thread of its own. A finished update is on disk before it is sent, so that nothing is trained
/// twice for one offer, whatever is killed in between.
#pragma once

#include <thread>

#include "transfer.h"

namespace fedstream::client {

using Request = v1::NegotiateRequest;

/// What a site allows, and what it has measured. 0 is no limit, and not known yet.
struct Pace {
  double max_epochs = 0, max_seconds = 0;
  double epoch_seconds = 0, transfer_seconds = 0;
  bool more_time_refused = false;
};

/// What to answer to an offer: accept it, decline it, or counter it with fewer epochs or more time.
inline Request answer_to(const v1::Offer& offer, const Pace& pace) {
  const double offered = offer.plan().epochs(), time = seconds_of(offer.time_remaining());
  const double epoch_seconds = pace.epoch_seconds * 1.2;  // epochs vary with what else a machine does
  double epochs = pace.max_epochs > 0 ? std::min(offered, pace.max_epochs) : offered;
  if (pace.epoch_seconds > 0 && pace.max_seconds > 0)
    epochs = std::min(epochs, std::floor(pace.max_seconds / pace.epoch_seconds));
  const double needed = epoch_seconds > 0 ? epochs * epoch_seconds + pace.transfer_seconds : 0;
  const bool asks_for_time = needed > time && !pace.more_time_refused;
  // Fewer epochs in time are worth more than another withdrawal.
  if (needed > time && !asks_for_time) epochs = std::floor((time - pace.transfer_seconds) / epoch_seconds);
  Request answer;
  if (epochs < 1) {
    answer.mutable_decline()->set_offer_id(offer.offer_id());
    answer.mutable_decline()->set_reason("not even one epoch fits what this site allows, or the time");
  } else if (epochs < offered || asks_for_time) {
    auto& counter = *answer.mutable_counter_offer();
    counter.set_offer_id(offer.offer_id());
    if (epochs < offered) counter.set_epochs(std::uint32_t(epochs));
    if (asks_for_time) *counter.mutable_time_needed() = span_of(needed);
    counter.set_reason("that is what this site allows, and has time for");
  } else {
    answer.mutable_accept()->set_offer_id(offer.offer_id());
  }
  return answer;
}

/// For a log line, with those of the metrics that have a value.
inline Facts with_metrics(Facts facts, const google::protobuf::RepeatedPtrField<v1::Metric>& metrics) {
  for (const auto& metric : metrics) {
    if (metric.has_value()) facts.emplace(metric.name(), metric.value());
  }
  return facts;
}

class Work {
 public:
  Work(Site& site, const Pace& pace) : site_(site), pace_(pace) {}
  ~Work() { stop(); }

  /// The answer to an offer. One that is worked on, or trained for, is accepted as it stands: a cut made it come again.
  Request answer(const v1::Offer& offer) {
    std::unique_lock lock(mutex_);
    if (offer.offer_id() != offer_.offer_id() || state_ == kDelivered || state_ == kDropped) {
      lock.unlock();
      stop();  // two fine-tunes at a time would take each other's time and files
      lock.lock();
      cancel_ = std::make_unique<Cancel>();
      offer_ = offer;
      state_ = kOffered;
      progress_.Clear();
    }
    Request answer = answer_to(offer, pace_);
    if (state_ == kFailed) {
      answer.mutable_decline()->set_offer_id(offer.offer_id());
      answer.mutable_decline()->set_reason(reason_);
    } else if (state_ == kWorking || site_.folder.update(offer)) {
      answer.mutable_accept()->set_offer_id(offer.offer_id());
    }
    asked_for_time_ = answer.counter_offer().has_time_needed();
    log_line("info", "offer", {{"round", offer.round()}, {"answer", json_of(answer)}});
    return answer;
  }

  /// Begin, or go on with, what was agreed, and keep the lease from now on.
  void confirm(const v1::Confirmation& confirmation, const v1::Welcome& terms) {
    const std::lock_guard lock(mutex_);
    if (confirmation.offer_id() != offer_.offer_id()) return;
    lease_seconds_ = seconds_of(confirmation.lease()) > 0 ? seconds_of(confirmation.lease()) : 60;
    is_told_ = false;
    if (std::exchange(state_, state_ == kOffered ? kWorking : state_) != kOffered) return;
    thread_ = std::thread([this, plan = confirmation.plan(), terms] { run(plan, terms); });
  }

  void renew(const v1::LeaseRenewal& renewal) {
    const std::lock_guard lock(mutex_);
    const double seconds = seconds_of(renewal.lease());
    if (renewal.offer_id() == offer_.offer_id() && lease_seconds_ > 0 && seconds > 0) lease_seconds_ = seconds;
  }

  /// The server does not want it (R-RND-6).
  void drop(const std::string& offer_id, const std::string& reason, bool is_withdrawn) {
    if (offer_id != offer_.offer_id()) return;
    log_line("info", "the server does not want this round's update", {{"because", reason}});
    end(kDropped);
    cancel_->request();
    const std::lock_guard lock(mutex_);
    pace_.more_time_refused = pace_.more_time_refused || (is_withdrawn && asked_for_time_);
  }

  /// Drop the work, and wait until nothing runs any more.
  void stop() {
    end(kDropped);
    cancel_->request();
    if (thread_.joinable()) thread_.join();
  }

  /// A new session: there is no lease before the work is confirmed in it.
  void forget_lease() {
    const std::lock_guard lock(mutex_);
    lease_seconds_ = 0;
  }

  /// The server is back.
  void hurry() { cancel_->hurry(); }

  /// What is to be said of the work now: how it goes, when it got on and often enough to keep the lease (R-RND-10), or
  /// that it failed. From another thread.
  std::optional<Request> sign_of_life() {
    const std::lock_guard lock(mutex_);
    const double due = is_told_ ? lease_seconds_ / 3 : std::min(1.0, lease_seconds_ / 6);
    if (lease_seconds_ == 0 || (state_ == kWorking && seconds_since(told_at_) < due)) return std::nullopt;
    Request request;
    if (state_ == kWorking) {
      told_at_ = Clock::now();
      is_told_ = true;
      *request.mutable_progress() = progress_;
      request.mutable_progress()->set_offer_id(offer_.offer_id());
      return request;
    }
    lease_seconds_ = 0;
    request.mutable_failure()->set_offer_id(offer_.offer_id());
    request.mutable_failure()->set_reason(reason_);
    return state_ == kFailed ? std::optional(request) : std::nullopt;
  }

  /// @throws Stop the work failed several times in a row
  void check_health() {
    const std::lock_guard lock(mutex_);
    if (failures_ >= 3) throw Stop(Exit::kFailed, "the work failed 3 times in a row; the log says why");
  }

 private:
  enum State { kOffered, kWorking, kDelivered, kDropped, kFailed };

  /// Whether it had not ended already. @param reason may leave this site: no file names, no paths
  bool end(State state, const std::string& reason = "", bool failed_here = false) {
    const std::lock_guard lock(mutex_);
    if (state_ != kOffered && state_ != kWorking) return false;
    state_ = state;
    reason_ = reason;
    if (state != kDropped) failures_ = failed_here ? failures_ + 1 : 0;
    return true;
  }

  void show(const v1::Progress& progress) {
    const std::lock_guard lock(mutex_);
    progress_ = progress;
    is_told_ = false;
  }
  void show(v1::Phase phase) {
    v1::Progress progress;
    progress.set_phase(phase);
    show(progress);
  }

  void run(const v1::Plan& plan, const v1::Welcome& terms) {
    Facts facts{{"round", offer_.round()}};
    try {
      const auto quarantined = work(plan, terms);
      if (!quarantined.empty()) facts.emplace("kept_aside_because", quarantined);
      if (end(kDelivered)) log_line(quarantined.empty() ? "info" : "warning", "update delivered", facts);
    } catch (const Dropped& error) {
      facts.emplace("because", error.what());
      if (end(kDropped)) log_line("info", "the work on this round ended", facts);
    } catch (const std::exception& error) {
      const auto* refusal = dynamic_cast<const Refusal*>(&error);
      const auto why = refusal == nullptr ? "the work failed at the site"
                                          : "the server refused a call: " + refusal->reason.substr(0, 64);
      facts.emplace("because", error.what());
      if (end(kFailed, why, refusal == nullptr)) log_line("error", "the work on this round ended", facts);
    }
  }

  /// @returns why the update was kept aside; empty if it is in the round
  std::string work(const v1::Plan& plan, const v1::Welcome& terms) {
    if (plan.epochs() < 1 || plan.batch_size() < 1 || !std::isfinite(plan.learning_rate())) {  // R-RND-13
      throw std::runtime_error("the plan is not sound");
    }
    const auto began = Clock::now();
    const auto& sha256 = offer_.base_model().model_digest().sha256();
    show(v1::PHASE_DOWNLOADING);
    const auto base = Download(site_, terms, *cancel_, sha256).run();
    const double fetching = seconds_since(began);
    auto update = site_.folder.update(offer_);
    if (update) {
      log_line("info", "this round is trained already; sending what was kept", {{"round", offer_.round()}});
    } else {
      update = train(base, plan);
    }
    update->mutable_header()->set_upload_id(offer_.upload_id());
    const auto sending = Clock::now();
    show(v1::PHASE_UPLOADING);
    const auto quarantined = Upload(site_, terms, *cancel_, *update).run();
    const std::lock_guard lock(mutex_);
    pace_.transfer_seconds = fetching + seconds_since(sending);
    return quarantined;
  }

  Model train(const Model& base, const v1::Plan& plan) {
    log_line("info", "training", {{"round", offer_.round()}, {"epochs", plan.epochs()}});
    show(v1::PHASE_TRAINING);
    const auto began = Clock::now();
    Model update = site_.task.fine_tune(
        base, plan, [this](const auto& progress) { show(progress); }, *cancel_);
    *update.mutable_offer() = offer_;
    for (int at = 0; at < update.values_size(); ++at) {
      *update.add_entries() = entry_of(site_.task.schema[at], update.values(at));
    }
    auto& header = *update.mutable_header();
    header.set_num_tensors(std::uint32_t(update.entries_size()));
    *header.mutable_model_digest() = model_digest(update.entries());
    header.set_training_seconds(seconds_since(began));
    site_.folder.keep("update", update);
    log_line(
        "info", "trained",
        with_metrics(
            {{"round", offer_.round()}, {"epochs", header.epochs()}, {"model", hex(header.model_digest().sha256())}},
            header.metrics()));
    const std::lock_guard lock(mutex_);
    pace_.epoch_seconds = header.training_seconds() / std::max(1U, header.epochs());
    return update;
  }

  Site& site_;
  std::unique_ptr<Cancel> cancel_ = std::make_unique<Cancel>();
  std::thread thread_;
  std::mutex mutex_;  // guards what follows; the offer changes only while no work is going on
  Pace pace_;
  v1::Offer offer_;
  State state_ = kDropped;
  std::string reason_;
  int failures_ = 0;
  bool asked_for_time_ = false;
  v1::Progress progress_;
  double lease_seconds_ = 0;  // 0 while nothing is to be told
  bool is_told_ = false;      // whether the progress as it is now was told
  Clock::time_point told_at_;
};

}  // namespace fedstream::client
