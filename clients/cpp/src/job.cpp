#include "job.h"

#include <cmath>

#include "digest.h"
#include "upload.h"

namespace fedstream::client {
namespace {

double seconds_since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }

/// A reason that may leave this site: no file names, no paths.
std::string general_words(const std::exception& error) {
  const auto* refusal = dynamic_cast<const Refusal*>(&error);
  if (refusal == nullptr) return "the work failed at the site";
  if (refusal->reason == "UNKNOWN_MODEL") return "the base model is not published any more";
  return "the server refused a call: " + refusal->reason;
}

/// R-RND-13.
void check_plan(const v1::Plan& plan) {
  const bool is_sound = plan.epochs() >= 1 && plan.batch_size() >= 1 && std::isfinite(plan.learning_rate());
  if (!is_sound) throw std::runtime_error("the plan is not sound");
}

}  // namespace

Job::Job(v1::Offer offer, Site& site) : offer_(std::move(offer)), site_(site) {}

void Job::stop() {
  drop("the client stops");
  if (thread_.joinable()) thread_.join();
}

Job::Standing Job::standing() const {
  const std::lock_guard lock(mutex_);
  return standing_;
}

void Job::start(const v1::Plan& plan, const Terms& terms) {
  {
    const std::lock_guard lock(mutex_);
    if (standing_.state != State::kOffered) return;
    standing_.state = State::kWorking;
  }
  thread_ = std::thread([=] { run(plan, terms); });
}

void Job::drop(const std::string& reason) {
  end(State::kDropped, reason);
  cancel_.request();
}

bool Job::end(State state, const std::string& reason, bool failed_here) {
  const std::lock_guard lock(mutex_);
  if (standing_.state != State::kOffered && standing_.state != State::kWorking) return false;
  standing_.state = state;
  standing_.reason = reason;
  standing_.failed_here = failed_here;
  return true;
}

void Job::show(v1::Phase phase, std::uint64_t done, std::uint64_t total) {
  const std::lock_guard lock(mutex_);
  standing_.progress.Clear();
  standing_.progress.set_phase(phase);
  standing_.progress.set_fraction(total == 0 ? 1.0F : float(double(done) / double(total)));
  ++standing_.news;
}

std::optional<KeptUpdate> Job::load() {
  return site_.store.load_update(offer_.offer_id(), offer_.base_model().model_digest().sha256());
}

void Job::run(const v1::Plan& plan, const Terms& terms) {
  const auto round = double(offer_.round());
  try {
    const auto quarantined = work(plan, terms);
    if (!end(State::kDelivered)) return;
    if (quarantined.empty()) return site_.log.info("update delivered", {{"round", round}});
    site_.log.warning("update delivered", {{"round", round}, {"kept_aside_because", quarantined}});
  } catch (const Cancelled&) {
    return;
  } catch (const Unwanted& error) {
    if (end(State::kDropped, error.what())) {
      site_.log.info("the work on this round ended", {{"round", round}, {"because", error.what()}});
    }
  } catch (const std::exception& error) {
    const bool failed_here = dynamic_cast<const Refusal*>(&error) == nullptr;
    if (end(State::kFailed, general_words(error), failed_here)) {
      site_.log.error("the work on this round ended", {{"round", round}, {"because", error.what()}});
    }
  }
}

std::string Job::work(const v1::Plan& plan, const Terms& terms) {
  check_plan(plan);
  const auto began = Clock::now();
  const auto on_download = [this](auto done, auto total) { show(v1::PHASE_DOWNLOADING, done, total); };
  const auto base = fetch_model(site_, offer_.base_model().model_digest().sha256(), terms.max_chunk_bytes, Patience(),
                                on_download, cancel_);
  site_.store.keep_only(offer_.offer_id(), base);
  const auto fetched = seconds_since(began);
  auto update = load();
  const bool begun_before = update.has_value();
  if (begun_before) {
    site_.log.info("this round is trained already; sending what was kept", {{"round", double(offer_.round())}});
  } else {
    update = train(base, plan);
  }
  const auto on_upload = [this](auto done, auto total) { show(v1::PHASE_UPLOADING, done, total); };
  for (bool is_damaged = false;;) {
    update->mutable_header()->set_upload_id(offer_.upload_id());
    const auto sending = Clock::now();
    try {
      const auto quarantined = send_update(site_, *update, terms, begun_before || is_damaged, on_upload, cancel_);
      site_.experience.transfer_seconds = fetched + seconds_since(sending);
      return quarantined;
    } catch (const Damaged&) {
      if (std::exchange(is_damaged, true)) throw;
      update = train(base, plan);  // which gives the same bytes
    }
  }
}

KeptUpdate Job::train(const Manifest& base, const v1::Plan& plan) {
  site_.log.info("training", {{"round", double(offer_.round())}, {"epochs", double(plan.epochs())}});
  show(v1::PHASE_TRAINING, 0, 1);
  const auto report = [this](const EpochReport& epoch) {
    const std::lock_guard lock(mutex_);
    auto& progress = standing_.progress;
    progress.set_phase(v1::PHASE_TRAINING);
    progress.set_epoch(epoch.epoch);
    progress.set_epochs(epoch.epochs);
    progress.set_fraction(float(double(epoch.epoch) / epoch.epochs));
    const auto metrics = write_metrics(epoch.metrics);
    progress.mutable_metrics()->Assign(metrics.begin(), metrics.end());
    ++standing_.news;
  };
  std::vector<std::string> weights;
  for (const auto& entry : base) weights.push_back(site_.store.read(entry));
  const auto began = Clock::now();
  const auto tuned = site_.training->fine_tune(weights, plan, report, cancel_);
  const auto seconds = seconds_since(began);
  site_.experience.epoch_seconds = seconds / std::max(1U, tuned.epochs);

  Manifest manifest;
  for (std::size_t at = 0; at < tuned.tensors.size(); ++at) {
    manifest.push_back(entry_of(site_.training->schema()[at], tuned.tensors[at]));
    if (!site_.store.has(manifest.back())) site_.store.put(manifest.back(), tuned.tensors[at]);
  }
  KeptUpdate update;
  update.set_offer_id(offer_.offer_id());
  update.set_base_sha256(offer_.base_model().model_digest().sha256());
  update.mutable_entries()->Assign(manifest.begin(), manifest.end());
  auto& header = *update.mutable_header();
  header.set_num_tensors(std::uint32_t(manifest.size()));
  *header.mutable_model_digest() = model_digest(manifest);
  header.set_num_examples(tuned.num_examples);
  const auto metrics = write_metrics(tuned.metrics);
  header.mutable_metrics()->Assign(metrics.begin(), metrics.end());
  header.set_epochs(tuned.epochs);
  header.set_training_seconds(seconds);
  site_.store.record(update);
  Facts facts{{"round", double(offer_.round())},
              {"epochs", double(tuned.epochs)},
              {"model", hex(header.model_digest().sha256())}};
  for (const auto& metric : header.metrics()) {
    if (metric.has_value()) facts.emplace_back(metric.name(), metric.value());
  }
  site_.log.info("trained", facts);
  return update;
}

}  // namespace fedstream::client
