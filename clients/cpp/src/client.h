/// 7. A client from start to end: one session after another until the federation is over, then the final model.
///
///     greeting --welcome--> member --federation_outcome--> over
///     greeting --schema_query--> greeting    the schema is sent
///     greeting --declined--> over            throws Stop
///     any --cut--> over                      throws Trouble; the work goes on, and a new session takes it up
///
/// One thread listens and answers, one does the work, and one gives signs of life and waits for signals.
#pragma once

#include <signal.h>

#include <atomic>

#include "fedstream/v1/negotiation.grpc.pb.h"
#include "work.h"

namespace fedstream::client {

struct RunConfig {
  Access access;
  fs::path data, state_dir, out;
  Pace pace;
  Patience patience;
};

class Client {
 public:
  Client(RunConfig config, OpenTask open_task)
      : config_(std::move(config)), open_task_(std::move(open_task)), link_(config_.access) {
    log_name = config_.access.name;
    // Before any other thread is there, since threads inherit which signals are held back.
    for (const int number : {SIGINT, SIGTERM}) sigaddset(&awaited_, number);
    pthread_sigmask(SIG_BLOCK, &awaited_, nullptr);
    keeper_ = std::thread([this] { keep(); });
  }
  ~Client() {
    is_over_ = true;
    keeper_.join();
  }

  /// Take part until the federation ends; returns how it ended, in words for people.
  /// @throws Stop
  std::string run() {
    try {
      const auto outcome = until_done(
          "talking to the server", config_.patience, never_, [this] { return sessions_; },
          [this] { return session(); });
      return "federation finished: " + outcome.reason() + '\n' + saved_;
    } catch (const Trouble& error) {
      throw Stop(Exit::kUnreachable,
                 "no contact to " + config_.access.server + " in the time that was given: " + error.what());
    }
  }

 private:
  using Stream = grpc::ClientReaderWriter<Request, v1::NegotiateResponse>;

  v1::FederationOutcome session() {
    using Service = v1::NegotiationService;
    try {
      link_.open();
      if (renew()) link_.open();
      prepare(ask(Service::NewStub(link_.channel()), &Service::Stub::DescribeTask, v1::DescribeTaskRequest(),
                  kAskSeconds, never_));
      work_->forget_lease();
      grpc::ClientContext context;  // R-TIM-4: no deadline
      const auto stream = Service::NewStub(link_.channel())->Negotiate(&context);
      const auto close = [this](Stream*) { show(nullptr, nullptr); };
      const std::unique_ptr<Stream, decltype(close)> open(show(stream.get(), &context), close);
      Request greeting;
      *greeting.mutable_hello() = hello();
      say(greeting);
      v1::NegotiateResponse message;
      while (stream->Read(&message)) {
        handle(message);
        work_->check_health();
        if (!message.has_federation_outcome()) continue;
        const auto outcome = message.federation_outcome();
        leave(nullptr);
        while (stream->Read(&message)) continue;  // until the server has closed its side too
        return outcome;
      }
      require_ok(stream->Finish());
      throw Trouble("the server ended the session");
    } catch (const Refusal& error) {
      judge(error);
    }
  }

  /// What the other thread may write to, and cut.
  Stream* show(Stream* stream, grpc::ClientContext* context) {
    const std::lock_guard lock(writing_);
    stream_ = stream;
    context_ = context;
    left_at_.reset();
    return stream;
  }

  /// If it cannot be written the stream has ended, and whoever listens hears why.
  void say(const Request& message) {
    const std::lock_guard lock(writing_);
    if (stream_ != nullptr && !left_at_) stream_->Write(message);
  }

  /// Close our side, after a good-bye if there is a reason to say (R-RND-8).
  void leave(const char* reason) {
    Request message;
    if (reason != nullptr) message.mutable_leave()->set_reason(reason), say(message);
    const std::lock_guard lock(writing_);
    if (stream_ == nullptr || left_at_) return;
    stream_->WritesDone();
    left_at_ = Clock::now();
  }

  /// A message of a kind that is not among these is ignored, as the contract has it (R-EVO-2).
  void handle(const v1::NegotiateResponse& message) {
    switch (message.kind_case()) {
      case v1::NegotiateResponse::kWelcome:
        terms_ = message.welcome();
        if (terms_.max_chunk_bytes() == 0) terms_.set_max_chunk_bytes(kDefaultChunkBytes);
        if (terms_.window_bytes() == 0) terms_.set_window_bytes(kDefaultWindowBytes);
        log_line("info", "welcome", {{"known_as", terms_.client_name()}, {"rounds", terms_.rounds()}});
        ++sessions_;
        return work_->hurry();
      case v1::NegotiateResponse::kDeclined: throw Stop(Exit::kDeclined, describe(message.declined()));
      case v1::NegotiateResponse::kSchemaQuery: {
        Request answer;  // one part, which holds up to 1,000 tensors
        *answer.mutable_schema_part()->mutable_tensors() = site_->task.schema;
        answer.mutable_schema_part()->set_last(true);
        return say(answer);
      }
      case v1::NegotiateResponse::kWaiting:
        return log_line("info", "the server is waiting", {{"because", message.waiting().reason()}});
      case v1::NegotiateResponse::kOffer: return say(work_->answer(message.offer()));
      case v1::NegotiateResponse::kConfirm: return work_->confirm(message.confirm(), terms_);
      case v1::NegotiateResponse::kWithdraw:
        return work_->drop(message.withdraw().offer_id(), message.withdraw().reason(), true);
      case v1::NegotiateResponse::kLeaseRenewal: return work_->renew(message.lease_renewal());
      case v1::NegotiateResponse::kCancel:
        return work_->drop(message.cancel().offer_id(), message.cancel().reason(), false);
      case v1::NegotiateResponse::kRoundOutcome: {
        const auto& outcome = message.round_outcome();
        const auto part = v1::Outcome_Name(outcome.outcome());
        return log_line(outcome.succeeded() ? "info" : "warning", "round over",
                        with_metrics({{"round", outcome.round()},
                                      {"because", outcome.reason()},
                                      {"our_part", part.empty() ? "unknown" : part},
                                      {"our_part_because", outcome.outcome_reason()}},
                                     outcome.metrics()));
      }
      case v1::NegotiateResponse::kFederationOutcome: return collect(message.federation_outcome());
      default: return;
    }
  }

  static std::string describe(const v1::Declined& declined) {
    const auto shown = [](bool is_there, const v1::TensorSpec& spec) {
      return !is_there ? "nothing"
                       : spec.name() + ' ' + v1::DataType_Name(spec.dtype()) + " [" + absl::StrJoin(spec.shape(), ",") +
                             "] " + (spec.trainable() ? "trainable" : "frozen");
    };
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

  /// Open data and folder, once; a server never names the code that is run (R-SCH-1).
  void prepare(const v1::DescribeTaskResponse& task) {
    const Settings settings(task.task_settings().begin(), task.task_settings().end());
    if (work_ != nullptr) {
      if (settings_ == settings) return;
      throw Stop(Exit::kDeclined, "the server has other settings now: start this client again");
    }
    auto opened = open_task_(settings, config_.data);
    if (task.task_name() != opened.name) {
      throw Stop(Exit::kDeclined, "this federation learns " + task.task_name() + ", and this client " + opened.name);
    }
    try {
      site_.reset(new Site{link_, Folder(config_.state_dir), std::move(opened)});
    } catch (const fs::filesystem_error& error) {
      wrong(std::string("--state-dir cannot be used: ") + error.what());
    }
    work_ = std::make_unique<Work>(*site_, config_.pace);
    settings_ = settings;
    log_line("info", "federation", {{"name", task.federation_name()}, {"task", task.task_name()}});
  }

  v1::Hello hello() const {
    const auto& task = site_->task;
    v1::Hello hello;
    hello.mutable_protocol()->set_min(1);
    hello.mutable_protocol()->set_max(1);
    hello.set_client_name(config_.access.name);
    hello.set_schema_sha256(sha256(canonical_schema(task.schema)));
    *hello.mutable_meaning() = task.meaning;
    hello.mutable_capabilities()->add_encodings(v1::ENCODING_RAW);
    hello.set_num_examples(task.num_examples);
    const auto& pace = config_.pace;
    hello.mutable_limits()->set_max_epochs(std::uint32_t(pace.max_epochs));
    if (pace.max_seconds > 0) *hello.mutable_limits()->mutable_max_training_time() = span_of(pace.max_seconds);
    hello.set_software("fedstream-cpp 0.1.0");
    hello.set_synthetic_data(task.synthetic);
    return hello;
  }

  /// Fetch the best model while the server is still there, a minute (R-RND-9), and write it for people.
  void collect(const v1::FederationOutcome& outcome) {
    work_->stop();
    try {
      const auto model = Download(*site_, terms_, never_, outcome.best_model().model_digest().sha256()).run({60});
      const auto file = config_.out / "GLOBAL_MODEL.safetensors";
      fs::create_directories(config_.out);
      write_durably(file, safetensors(model));
      saved_ = "saved " + file.string();
      log_line("info", "federation over",
               with_metrics({{"best_round", outcome.best_model().version()}}, outcome.metrics()));
    } catch (const fs::filesystem_error& error) {
      wrong(std::string("the final model cannot be kept: ") + error.what());
    } catch (const std::runtime_error& error) {  // a new session would find no server
      throw Stop(Exit::kUnreachable, "federation finished: " + outcome.reason() +
                                         "\nbut its final model could not be fetched (" + error.what() +
                                         "): ask the coordinator for it");
    }
  }

  /// Which refusals end a client, and with what.
  [[noreturn]] void judge(const Refusal& error) {
    const auto is = [&](const char* reason) { return error.reason == reason; };
    if (is("LIMIT_EXCEEDED")) throw error;
    if (is("UNAUTHENTICATED") || is("PERMISSION_DENIED") || is("NAME_MISMATCH")) {
      throw Stop(Exit::kUntrusted, std::string(error.what()) + ": ask the coordinator");
    }
    if (!is("SUPERSEDED")) {
      throw Stop(Exit::kDefect, "the server refused this client's message (" + error.reason + "): " + error.what());
    }
    // Twice within five minutes means that another process uses the name (R-HEL-9).
    const auto before = std::exchange(superseded_at_, Clock::now());
    if (!before || seconds_since(*before) >= 300) throw Trouble("a newer session of the same name took over");
    throw Stop(Exit::kReplaced, "another client called " + config_.access.name +
                                    " took over: names must be unique, give another --name");
  }

  /// Whether there is a new certificate, which the next connection is to show (R-JOIN-6).
  bool renew() {
    const std::lock_guard lock(renewing_);
    if (!renew_if_due(config_.access.trust, link_.channel())) return false;
    link_.close();
    return true;
  }

  /// The thread of signs of life: every twentieth of a second it looks whether something is due.
  void keep() {
    auto renewed_at = Clock::now();
    while (!is_over_) {
      const timespec pause{0, 50'000'000};
      if (const int number = sigtimedwait(&awaited_, nullptr, &pause); number > 0) stop(number);
      {
        const std::lock_guard lock(writing_);
        if (left_at_ && seconds_since(*left_at_) > 5) context_->TryCancel();  // all is said, so nothing is lost
        if (stream_ == nullptr || left_at_) continue;
        if (const auto sign = work_->sign_of_life()) stream_->Write(*sign);
      }
      if (seconds_since(renewed_at) < 3'600) continue;
      renewed_at = Clock::now();
      try {
        const bool is_renewed = renew();
        const std::lock_guard lock(writing_);
        if (is_renewed && context_ != nullptr) context_->TryCancel();  // the next session is on a new connection
      } catch (const std::runtime_error& error) {  // this session goes on; the next one will say it again
        log_line("warning", "the certificate could not be renewed", {{"because", error.what()}});
      }
    }
  }

  /// Say good-bye, wait for the server to end the stream, for a few seconds at most, and end the process.
  [[noreturn]] void stop(int signal_number) {
    leave("stopped by its operator");
    const auto began = Clock::now();
    for (bool is_open = true; is_open && seconds_since(began) < 3;
         std::this_thread::sleep_for(std::chrono::milliseconds(20))) {
      const std::lock_guard lock(writing_);
      is_open = stream_ != nullptr;
    }
    _exit(128 + signal_number);
  }

  const RunConfig config_;
  const OpenTask open_task_;
  Link link_;
  Cancel never_;
  Settings settings_;
  std::unique_ptr<Site> site_;
  std::unique_ptr<Work> work_;
  v1::Welcome terms_;
  int sessions_ = 0;
  std::optional<Clock::time_point> superseded_at_;
  std::string saved_;

  std::mutex writing_;  // one write at a time; guards what follows
  Stream* stream_ = nullptr;
  grpc::ClientContext* context_ = nullptr;
  std::optional<Clock::time_point> left_at_;  // when our side of the stream was closed

  std::mutex renewing_;
  sigset_t awaited_{};
  std::atomic<bool> is_over_ = false;
  std::thread keeper_;
};

}  // namespace fedstream::client
