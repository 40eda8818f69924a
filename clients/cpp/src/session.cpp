#include "session.h"

#include "limits.h"
#include "spans.h"

namespace fedstream::client {
namespace {

constexpr double kLookSeconds = 0.05;
/// Part of a lease after which it is renewed: two signs of life may be lost before the third is due.
constexpr double kLeaseShare = 1.0 / 3;
/// Least time between two signs of progress that is news, where the lease is not much shorter.
constexpr double kPauseSeconds = 1;
/// Where a confirmation names no lease.
constexpr double kDefaultLeaseSeconds = 60;
constexpr double kLastWordsSeconds = 3;
constexpr auto kCertificateLook = std::chrono::hours(1);

void log_round(const Log& log, const v1::RoundOutcome& outcome) {
  const auto name = v1::Outcome_Name(outcome.outcome());
  Facts facts{{"round", double(outcome.round())},
              {"because", outcome.reason()},
              {"our_part", name.empty() ? "unknown" : name},
              {"our_part_because", outcome.outcome_reason()}};
  for (const auto& metric : outcome.metrics()) {
    if (metric.has_value()) facts.emplace_back(metric.name(), metric.value());
  }
  outcome.succeeded() ? log.info("round over", facts) : log.warning("round over", facts);
}

std::string shown(bool is_there, const Spec& spec) {
  if (!is_there) return "nothing";
  std::string shape;
  for (const auto length : spec.shape()) shape += (shape.empty() ? "" : ",") + std::to_string(length);
  return spec.name() + ' ' + v1::DataType_Name(spec.dtype()) + " [" + shape + "] " +
         (spec.trainable() ? "trainable" : "frozen");
}

std::string describe(const v1::Declined& declined) {
  std::string text = "the server declined this client: " + declined.message();
  for (const auto& one : declined.differences()) {
    text += "\n  the federation has " + shown(one.has_server(), one.server()) + ", this client " +
            shown(one.has_client(), one.client());
  }
  if (declined.more_differences() != 0) text += "\n  and " + std::to_string(declined.more_differences()) + " more";
  if (declined.has_server_meaning()) text += "\n  the federation means " + json_of(declined.server_meaning());
  if (declined.has_client_meaning()) text += "\n  this client means " + json_of(declined.client_meaning());
  return text;
}

}  // namespace

Session::Session(Site& site, Bench& bench, Hooks hooks)
    : site_(site),
      bench_(bench),
      hooks_(std::move(hooks)),
      stream_(site.connection.negotiate()),
      terms_{limits::kDefaultChunkBytes, limits::kDefaultWindowBytes} {}

v1::FederationOutcome Session::run(const v1::Hello& hello) {
  v1::NegotiateRequest message;
  *message.mutable_hello() = hello;
  write(message);
  std::thread keeper([this] { keep(); });
  const auto end = [&] {
    ended_.request();
    keeper.join();
  };
  try {
    const auto outcome = listen();
    end();
    return outcome;
  } catch (...) {
    end();
    throw;
  }
}

v1::FederationOutcome Session::listen() {
  v1::NegotiateResponse message;
  while (stream_.read(&message)) {
    handle(message);
    bench_.check_health();
    if (message.has_federation_outcome()) {
      close();
      return message.federation_outcome();
    }
  }
  throw Trouble("the server ended the session");
}

/// A message of a kind that is not among these is ignored, as the contract has it (R-EVO-2).
void Session::handle(const v1::NegotiateResponse& message) {
  switch (message.kind_case()) {
    case v1::NegotiateResponse::kWelcome: {
      const auto& welcome = message.welcome();
      const auto chunk = welcome.max_chunk_bytes() != 0 ? welcome.max_chunk_bytes() : limits::kDefaultChunkBytes;
      terms_.max_chunk_bytes = std::min<std::uint64_t>(chunk, limits::kMaxChunkBytes);
      terms_.window_bytes = welcome.window_bytes() != 0 ? welcome.window_bytes() : limits::kDefaultWindowBytes;
      site_.log.info("welcome", {{"known_as", welcome.client_name()}, {"rounds", double(welcome.rounds())}});
      return hooks_.welcomed();
    }
    case v1::NegotiateResponse::kDeclined:
      throw Stop(Exit::kDeclined, describe(message.declined()));
    case v1::NegotiateResponse::kSchemaQuery:
      return answer_schema_query();
    case v1::NegotiateResponse::kWaiting:
      return site_.log.info("the server is waiting", {{"because", message.waiting().reason()}});
    case v1::NegotiateResponse::kOffer:
      return write(bench_.consider(message.offer()));
    case v1::NegotiateResponse::kConfirm:
      return confirm(message.confirm());
    case v1::NegotiateResponse::kWithdraw:
      return bench_.withdraw(message.withdraw());
    case v1::NegotiateResponse::kLeaseRenewal:
      return renew(message.lease_renewal());
    case v1::NegotiateResponse::kCancel:
      return bench_.cancel(message.cancel());
    case v1::NegotiateResponse::kRoundOutcome:
      return log_round(site_.log, message.round_outcome());
    case v1::NegotiateResponse::kFederationOutcome:
      return hooks_.collect(message.federation_outcome(), terms_);
    default:
      return;
  }
}

void Session::answer_schema_query() {
  for (const auto& part : schema_parts(site_.training->schema())) {
    v1::NegotiateRequest message;
    *message.mutable_schema_part() = part;
    write(message);
  }
}

void Session::confirm(const v1::Confirmation& confirmation) {
  if (!bench_.confirm(confirmation, terms_)) return;
  const auto seconds = seconds_of(confirmation.lease());
  const std::lock_guard lock(mutex_);
  lease_ = {confirmation.offer_id(), seconds > 0 ? seconds : kDefaultLeaseSeconds, -1, {}};
}

void Session::renew(const v1::LeaseRenewal& renewal) {
  const auto seconds = seconds_of(renewal.lease());
  const std::lock_guard lock(mutex_);
  if (lease_.offer_id == renewal.offer_id() && seconds > 0) lease_.seconds = seconds;
}

/// Close this side, and wait until the server has closed its own, for a few seconds at most.
void Session::close() {
  try {
    stream_.allow(std::chrono::seconds(5));
    {
      const std::lock_guard lock(writing_);
      has_left_ = true;
      stream_.writes_done();
    }
    v1::NegotiateResponse message;
    while (stream_.read(&message)) continue;
  } catch (const std::runtime_error&) {
    return;  // all is said, so nothing is lost
  }
}

void Session::leave(const std::string& reason) {
  v1::NegotiateRequest message;
  message.mutable_leave()->set_reason(limits::clip_reason(reason));
  write(message);
  {
    const std::lock_guard lock(writing_);
    if (!std::exchange(has_left_, true)) stream_.writes_done();
  }
  try {
    ended_.sleep(kLastWordsSeconds);
  } catch (const Cancelled&) {
    return;
  }
}

void Session::keep() {
  auto looked = Clock::now();
  try {
    for (;;) {
      ended_.sleep(kLookSeconds);
      tell_progress();
      if (Clock::now() - looked < kCertificateLook) continue;
      looked = Clock::now();
      look_at_certificate();
    }
  } catch (const Cancelled&) {
    return;
  }
}

/// With a new certificate the session ends, and the next one is on a new connection.
void Session::look_at_certificate() {
  try {
    if (hooks_.renewed()) stream_.cancel();
  } catch (const std::runtime_error& error) {  // this session goes on; the next one will say it again
    site_.log.warning("the certificate could not be renewed", {{"because", error.what()}});
  }
}

/// Tell how the agreed work goes: when it got on, and often enough to keep the lease (R-RND-10).
void Session::tell_progress() {
  v1::NegotiateRequest message;
  {
    const std::lock_guard lock(mutex_);
    if (lease_.offer_id.empty()) return;
    const auto job = bench_.job_of(lease_.offer_id);
    const auto standing = job == nullptr ? Job::Standing() : job->standing();
    if (standing.state == Job::State::kWorking) {
      const double age = std::chrono::duration<double>(Clock::now() - lease_.told_at).count();
      const double due = lease_.seconds * kLeaseShare;
      if (age < (standing.news == lease_.told ? due : std::min(kPauseSeconds, due / 2))) return;
      lease_.told = standing.news;
      lease_.told_at = Clock::now();
      *message.mutable_progress() = standing.progress;
      message.mutable_progress()->set_offer_id(lease_.offer_id);
    } else {
      if (standing.state == Job::State::kFailed) {
        message.mutable_failure()->set_offer_id(lease_.offer_id);
        message.mutable_failure()->set_reason(limits::clip_reason(standing.reason));
      }
      lease_ = Lease();
    }
  }
  if (message.kind_case() != v1::NegotiateRequest::KIND_NOT_SET) write(message);
}

/// If it cannot be written the stream has ended, and whoever listens hears why.
void Session::write(const v1::NegotiateRequest& message) {
  const std::lock_guard lock(writing_);
  if (!has_left_) stream_.try_write(message);
}

}  // namespace fedstream::client
