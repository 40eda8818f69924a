/// 5. The work on one offer, which outlives the streams that it is agreed on.
///
///     offered --confirm--> working --acknowledged--> over
///     any --cancel, withdraw--> over
///     working --cannot be done--> failed
///
/// A thread of its own does it, which shows how far it is, and ends with a result or an error. A finished update is on
/// disk before it is sent, so that nothing is trained twice for one offer, whatever is killed in between.
#pragma once

#include <future>

#include "transfer.h"

namespace fedstream::client {

using Request = v1::NegotiateRequest;

class Work {
 public:
  Work(Site& site, v1::Offer offer) : site_(site), offer_(std::move(offer)) {}

  /// Waits until nothing runs any more: two fine-tunes at a time would take each other's time and files.
  ~Work() {
    effort_.cancel();
    if (result_.valid()) result_.wait();
  }

  bool is_for(const std::string& offer_id) const { return offer_.offer_id() == offer_id && state_ != kOver; }

  /// The answer to the offer, also when a cut made it come again: what is worked on, or trained, stands as agreed.
  Request answer(std::uint32_t max_epochs) {
    Request answer;
    max_epochs_ = max_epochs;
    agreed_epochs_ = offer_.plan().epochs();
    if (state_ == kFailed) {
      answer.mutable_decline()->set_offer_id(offer_.offer_id());
      answer.mutable_decline()->set_reason(kFailure);
    } else if (max_epochs == 0 || offer_.plan().epochs() <= max_epochs || state_ == kWorking || kept_update()) {
      answer.mutable_accept()->set_offer_id(offer_.offer_id());
    } else {
      answer.mutable_counter_offer()->set_offer_id(offer_.offer_id());
      answer.mutable_counter_offer()->set_epochs(agreed_epochs_ = max_epochs);
    }
    return answer;
  }

  /// Begin, or go on with, what was agreed. More is refused, since what a site allows holds whatever the server says;
  /// so is a plan that cannot be carried out (R-RND-13).
  /// @param peer gives the server's end as it is now: a connection is made anew with the next certificate
  void confirm(const v1::Confirmation& confirmation, const std::function<Peer()>& peer) {
    lease_seconds_ = seconds_of(confirmation.lease());
    if (state_ != kOffered) return;
    auto plan = confirmation.plan();
    if (plan.epochs() > agreed_epochs_ || plan.epochs() == 0 || plan.batch_size() == 0 ||
        !std::isfinite(plan.learning_rate())) {
      state_ = kFailed;
      log_line("error", "the server goes by other terms than were agreed on",
               {{"agreed_epochs", agreed_epochs_}, {"plan", json_of(plan)}});
      return;
    }
    if (max_epochs_ > 0) plan.set_epochs(std::min(plan.epochs(), max_epochs_));  // trained by an earlier agreement
    state_ = kWorking;
    result_ = std::async(std::launch::async, [this, plan, peer] { return run(plan, peer); });
  }

  void renew(const v1::LeaseRenewal& renewal) {
    if (seconds_of(renewal.lease()) > 0) lease_seconds_ = seconds_of(renewal.lease());
  }

  /// The server does not want it any more (R-RND-6).
  void drop(const std::string& reason) {
    log_line("info", "the server does not want this round's update", {{"because", reason}});
    state_ = kOver;
    effort_.cancel();
  }

  /// A new session: what waits for the server need not wait any longer. There is no lease until the work is confirmed.
  void rejoin() {
    lease_seconds_ = 0;
    effort_.advance();
  }

  /// What is to be said of the work now: how far it is, each second or as often as keeps the lease (R-RND-10), or that
  /// it failed (R-RND-7). To be asked some times a second.
  std::optional<Request> sign_of_life() {
    if (state_ == kWorking && result_.wait_for(Seconds(0)) == std::future_status::ready) conclude();
    Request request;
    if (state_ == kWorking && lease_seconds_ > 0 && seconds_since(told_at_) >= std::min(1.0, lease_seconds_ / 3)) {
      told_at_ = Clock::now();
      const std::lock_guard lock(mutex_);
      *request.mutable_progress() = progress_;
      request.mutable_progress()->set_offer_id(offer_.offer_id());
    } else if (state_ == kFailed && std::exchange(lease_seconds_, 0) > 0) {
      request.mutable_failure()->set_offer_id(offer_.offer_id());
      request.mutable_failure()->set_reason(kFailure);
    } else {
      return std::nullopt;
    }
    return request;
  }

  /// Why this client is to end, such as that the server does not let it in any more; to be said after the failure.
  const std::optional<Stop>& stop() const { return stop_; }

 private:
  static constexpr char kFailure[] = "the work failed; the log of the site says why";
  /// Failed trainings in a row after which a person should have a look.
  static constexpr int kMostFailures = 3;
  enum State { kOffered, kWorking, kOver, kFailed };

  /// The thread has ended: see how.
  void conclude() {
    Json facts{{"round", offer_.round()}};
    try {
      facts["kept_aside_because"] = result_.get();
      state_ = kOver;
      site_.failed_trainings = 0;
      log_line("info", "update delivered", facts);
    } catch (const std::exception& error) {
      const bool is_wanted = dynamic_cast<const Dropped*>(&error) == nullptr;
      state_ = is_wanted ? kFailed : kOver;
      if (const auto* stop = dynamic_cast<const Stop*>(&error)) stop_ = *stop;
      if (dynamic_cast<const TrainingFailed*>(&error) != nullptr && ++site_.failed_trainings >= kMostFailures) {
        stop_ = Stop(Exit::kTrainingFailed, "local training failed three times in a row; the log says why");
      }
      facts["because"] = error.what();
      log_line(is_wanted ? "error" : "info", "the work on this round ended", facts);
    }
  }

  /// The update that was trained for this offer, if every byte of it is there; a damaged one is made again.
  std::optional<Model> kept_update() const {
    Model kept;
    const auto file = site_.folder / "update";
    const bool counts =
        fs::exists(file) && kept.ParseFromString(read_file(file)) && kept.header().upload_id() == offer_.upload_id() &&
        kept.values_size() == site_.task.schema.size() &&
        kept.header().model_digest().sha256() == model_digest(manifest_of(site_.task.schema, kept)).sha256();
    return counts ? std::optional(std::move(kept)) : std::nullopt;
  }

  /// In the thread of the work. @returns why the update was kept aside; empty if it is in the round
  std::string run(const v1::Plan& plan, const std::function<Peer()>& peer) {
    auto update = kept_update();
    if (update) {
      log_line("info", "this round is trained already; sending what was kept", {{"round", offer_.round()}});
    }
    v1::Progress progress;
    int takeovers = 0;
    const auto enter = [&](v1::Phase phase) { progress.set_phase(phase), show(progress); };
    return effort_.until_done("working on the offer", [&] {
      Transfer transfer(site_, peer(), effort_);
      if (!update) {
        enter(v1::PHASE_DOWNLOADING);
        const auto base = transfer.download(offer_.base_model().model_digest().sha256());
        enter(v1::PHASE_TRAINING);
        update = train(base, plan);
      }
      enter(v1::PHASE_UPLOADING);
      try {
        return transfer.upload(*update);
      } catch (const Superseded& error) {  // at times by a stream of our own that came late
        if (++takeovers > 3) throw Refusal(error.what());
        throw;
      }
    });
  }

  Model train(const Model& base, const v1::Plan& plan) {
    const auto began = Clock::now();
    Model update = fine_tune(base, plan);
    auto& header = *update.mutable_header();
    header.set_upload_id(offer_.upload_id());
    header.set_num_tensors(std::uint32_t(update.values_size()));
    *header.mutable_model_digest() = model_digest(manifest_of(site_.task.schema, update));
    header.set_training_seconds(seconds_since(began));
    effort_.until_written("what was trained waits for the disk",
                          [&] { write_durably(site_.folder / "update", update.SerializeAsString()); });
    Json facts{{"round", offer_.round()}, {"epochs", header.epochs()}};
    facts["model"] = hex(header.model_digest().sha256());
    for (const auto& metric : header.metrics()) facts[metric.name()] = metric.value();
    log_line("info", "trained", facts);
    return update;
  }

  Model fine_tune(const Model& base, const v1::Plan& plan) {
    try {
      return site_.task.fine_tune(
          base, plan, [this](const v1::Progress& progress) { show(progress); }, effort_);
    } catch (const Dropped&) {
      throw;
    } catch (const std::exception& error) {
      throw TrainingFailed(error.what());
    }
  }

  void show(const v1::Progress& progress) {
    const std::lock_guard lock(mutex_);
    progress_ = progress;
  }

  Site& site_;
  const v1::Offer offer_;
  State state_ = kOffered;
  std::uint32_t agreed_epochs_ = 0, max_epochs_ = 0;  // that may be trained; of the second, 0 is no limit
  std::optional<Stop> stop_;
  double lease_seconds_ = 0;  // 0 while nothing is to be told
  Clock::time_point told_at_;
  Effort effort_;
  std::mutex mutex_;  // guards the progress
  v1::Progress progress_;
  std::future<std::string> result_;
};

}  // namespace fedstream::client
