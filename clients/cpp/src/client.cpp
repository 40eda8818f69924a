#include "client.h"

#include "digest.h"
#include "join.h"
#include "limits.h"
#include "safetensors.h"
#include "spans.h"

namespace fedstream::client {
namespace {

constexpr char kSoftware[] = "fedstream-cpp 0.1.0";
/// Being superseded twice within this time means that another process uses the name (R-HEL-9).
constexpr auto kRival = std::chrono::minutes(5);
/// How long a server stays for those who fetch the final model (R-RND-9).
constexpr double kFarewellSeconds = 60;

}  // namespace

Client::Client(RunConfig config, Trainer trainer)
    : config_(std::move(config)),
      trainer_(std::move(trainer)),
      log_(config_.name),
      connection_(config_.server, config_.trust) {}

std::string Client::run() {
  Patience patience;
  patience.give_up_after_seconds = config_.give_up_after_seconds;
  try {
    const auto outcome = until_done([this] { return one_session(); }, [this] { return sessions_; }, patience,
                                    "talking to the server", log_, never_);
    return "federation finished: " + outcome.reason() + '\n' + saved_;
  } catch (const Trouble& error) {
    throw Stop(Exit::kUnreachable, "no contact to " + config_.server + " in the time that was given: " + error.what());
  }
}

void Client::leave(const std::string& reason) {
  const std::lock_guard lock(mutex_);  // so that the session stays until it has said so
  if (session_ != nullptr) session_->leave(reason);
}

v1::FederationOutcome Client::one_session() {
  try {
    connection_.open();
    if (renew()) connection_.open();
    prepare(connection_.describe_task());
    return talk();
  } catch (const Refusal& error) {
    judge(error);
  }
}

v1::FederationOutcome Client::talk() {
  const auto collected = [this](const v1::FederationOutcome& outcome, const Terms& terms) { collect(outcome, terms); };
  Session session(*site_, *bench_, {[this] { ++sessions_; }, collected, [this] { return renew(); }});
  struct Shown {
    Shown(Client& client, Session* session) : client(client) { show(session); }
    ~Shown() { show(nullptr); }
    void show(Session* session) {
      const std::lock_guard lock(client.mutex_);
      client.session_ = session;
    }
    Client& client;
  } shown(*this, &session);
  return session.run(hello());
}

bool Client::renew() {
  const auto& folder = config_.trust.identity;
  if (folder.empty() || !renew_if_due(IdentityFolder(folder), connection_, log_)) return false;
  connection_.close();
  return true;
}

/// Which refusals end a client, and with what.
void Client::judge(const Refusal& error) {
  const auto is = [&](const char* reason) { return error.reason == reason; };
  if (is("LIMIT_EXCEEDED")) throw error;
  if (is("SUPERSEDED")) judge_rival();
  if (is("UNAUTHENTICATED") || is("PERMISSION_DENIED") || is("NAME_MISMATCH")) {
    throw Stop(Exit::kUntrusted, std::string(error.what()) + ": ask the coordinator");
  }
  throw Stop(Exit::kDefect, "the server refused this client's message (" + error.reason + "): " + error.what());
}

void Client::judge_rival() {
  const auto now = Clock::now();
  const auto before = std::exchange(superseded_at_, now);
  if (!before || now - *before >= kRival) throw Trouble("a newer session of the same name took over");
  throw Stop(Exit::kReplaced,
             "another client called " + config_.name + " took over: names must be unique, give another --name");
}

/// Open data and store, once; a server never names the code that is run (R-SCH-1).
void Client::prepare(const v1::DescribeTaskResponse& task) {
  const Settings settings(task.task_settings().begin(), task.task_settings().end());
  if (settings_ == settings) return;
  if (settings_) throw Stop(Exit::kDeclined, "the server has other settings now: start this client again");
  if (task.task_name() != trainer_.task_name) {
    throw Stop(Exit::kDeclined,
               "this federation learns " + task.task_name() + ", and this client " + trainer_.task_name);
  }
  auto training = trainer_.open(settings, config_.data);
  try {
    site_.reset(new Site{connection_, log_, Store(config_.state_dir), std::move(training), {}});
  } catch (const fs::filesystem_error& error) {
    throw Stop(Exit::kBadConfiguration, std::string("--state-dir cannot be used: ") + error.what());
  }
  bench_ = std::make_unique<Bench>(*site_, config_.limits);
  settings_ = settings;
  log_.info("federation", {{"name", task.federation_name()}, {"task", task.task_name()}});
}

v1::Hello Client::hello() const {
  const auto& training = *site_->training;
  v1::Hello hello;
  hello.mutable_protocol()->set_min(limits::kProtocol);
  hello.mutable_protocol()->set_max(limits::kProtocol);
  hello.set_client_name(config_.name);
  hello.set_schema_sha256(sha256(canonical_schema(training.schema())));
  *hello.mutable_meaning() = training.meaning();
  hello.mutable_capabilities()->add_encodings(v1::ENCODING_RAW);
  hello.mutable_capabilities()->set_max_chunk_bytes(limits::kDefaultChunkBytes);
  hello.set_num_examples(training.num_examples());
  const double epoch_seconds = site_->experience.epoch_seconds;
  if (epoch_seconds > 0) *hello.mutable_epoch_duration() = span_of(epoch_seconds);
  hello.mutable_limits()->set_max_epochs(config_.limits.max_epochs);
  if (config_.limits.max_seconds > 0)
    *hello.mutable_limits()->mutable_max_training_time() = span_of(config_.limits.max_seconds);
  hello.set_software(kSoftware);
  hello.set_synthetic_data(training.synthetic());
  return hello;
}

/// Fetch the best model while the server is still there, and write it for people.
void Client::collect(const v1::FederationOutcome& outcome, const Terms& terms) {
  bench_->close();
  Facts facts{{"best_round", double(outcome.best_model().version())}};
  for (const auto& metric : outcome.metrics()) {
    if (metric.has_value()) facts.emplace_back(metric.name(), metric.value());
  }
  Patience patience;
  patience.give_up_after_seconds = kFarewellSeconds;
  try {
    const auto manifest = fetch_model(
        *site_, outcome.best_model().model_digest().sha256(), terms.max_chunk_bytes, patience, [](auto, auto) {},
        never_);
    const auto file = config_.out / "GLOBAL_MODEL.safetensors";
    make_folder(config_.out);
    write_safetensors(file, manifest, site_->store);
    saved_ = "saved " + file.string();
    log_.info("federation over", facts);
  } catch (const fs::filesystem_error& error) {
    throw Stop(Exit::kBadConfiguration, std::string("the final model cannot be kept: ") + error.what());
  } catch (const std::runtime_error& error) {  // a new session would find no server (R-RND-9)
    throw Stop(Exit::kUnreachable, "federation finished: " + outcome.reason() +
                                       "\nbut its final model could not be fetched (" + error.what() +
                                       "): ask the coordinator for it");
  }
}

}  // namespace fedstream::client
