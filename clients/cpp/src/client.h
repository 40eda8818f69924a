/// 6. A client from start to end: one session after another until the federation is over, then the final model.
///
///     greeting --welcome--> member --federation_outcome--> over
///     greeting --schema_query--> greeting    the schema is sent
///     greeting --declined--> over            throws Stop, as a welcome in another version does
///     any --cut--> over                      throws Trouble; the work goes on, and a new session takes it up
///
/// All that is decided is decided in one thread. Of the other two, one listens, and one works (work.h).
#pragma once

#include <csignal>

#include "fedstream/v1/negotiation.grpc.pb.h"
#include "work.h"

namespace fedstream::client {

struct RunConfig {
  Access access;
  fs::path data, state_dir, out;
  fs::path former_state_dir;  // where earlier versions kept the state of all sites of this name; empty if it was named
  std::uint32_t max_epochs = 0;
};

/// The signal by which the operator has asked for the end, or 0. The first one leaves some seconds for a good-bye, and
/// the next ends at once; but a hang-up of a terminal is often sent twice, by the shell and by the system.
inline volatile std::sig_atomic_t stop_signal = 0;
inline void on_signal(int number) {
  if (stop_signal != 0 && number == SIGHUP) return;
  if (stop_signal != 0) _exit(128 + stop_signal);
  stop_signal = number;
  alarm(4);
}

/// One Negotiate stream. A thread listens for the next message, since listening blocks; the owner does all else.
class Session {
 public:
  explicit Session(const std::shared_ptr<grpc::Channel>& channel)  // R-TIM-4: without a deadline
      : stream_(v1::NegotiationService::NewStub(channel)->Negotiate(&context_)) {
    listen();
  }
  ~Session() { context_.TryCancel(); }

  /// If it cannot be written the stream has ended, and `next` says how.
  void say(const Request& message) { stream_->Write(message); }

  /// The next message; none if none came in that time. @throws what the stream has ended with
  std::optional<v1::NegotiateResponse> next(double wait_seconds) {
    if (has_come_.wait_for(Seconds(wait_seconds)) != std::future_status::ready) return std::nullopt;
    if (!has_come_.get()) {
      require_ok(stream_->Finish());
      throw Trouble("the server ended the session");
    }
    auto message = std::exchange(message_, {});
    listen();
    return message;
  }

  /// Say that this client goes for good (R-RND-8).
  void leave(const std::string& reason) {
    Request message;
    message.mutable_leave()->set_reason(reason);
    say(message);
    close();
  }

  /// Close our side, and wait some seconds for the server to close its own: then all that was said has come to it.
  void close() {
    stream_->WritesDone();
    while (has_come_.wait_for(Seconds(5)) == std::future_status::ready && has_come_.get()) listen();
  }

 private:
  void listen() {
    has_come_ = std::async(std::launch::async, [this] { return stream_->Read(&message_); });
  }

  grpc::ClientContext context_;
  const std::unique_ptr<grpc::ClientReaderWriter<Request, v1::NegotiateResponse>> stream_;
  v1::NegotiateResponse message_;
  std::future<bool> has_come_;  // the last, since its end waits for the thread's
};

class Client {
 public:
  Client(RunConfig config, OpenTask open_task) : config_(std::move(config)), open_task_(std::move(open_task)) {
    log_name = config_.access.name;
    try {
      make_folder(config_.state_dir);
      if (!lock_folder(config_.state_dir)) {
        wrong("another client uses " + config_.state_dir.string() +
              ": stop it, or give this one another --name or --state-dir");
      }
    } catch (const fs::filesystem_error& error) {
      wrong(std::string("the folder for what must survive a restart cannot be used: ") + error.what());
    }
    std::error_code unreadable;
    const auto& former = config_.former_state_dir;
    if (!former.empty() && fs::exists(former / "lock", unreadable)) {
      log_line("warning", "the state folder of an earlier version is not used",
               {{"folder", former.string()},
                {"because",
                 "its name does not say of which server it is: to go on with what it keeps, name it with "
                 "--state-dir; else remove it"}});
    }
    try {  // before rounds of work: that the final model cannot be written would be found at the end
      fs::create_directories(config_.out);
      if (::access(config_.out.c_str(), W_OK) != 0) fail(config_.out);
    } catch (const fs::filesystem_error& error) {
      wrong("--out: models cannot be written to " + config_.out.string() + ": " + error.code().message());
    }
    for (const int number : {SIGINT, SIGTERM, SIGALRM}) std::signal(number, on_signal);
    if (std::signal(SIGHUP, SIG_IGN) != SIG_IGN) std::signal(SIGHUP, on_signal);  // `nohup` has it ignored
  }

  /// Take part until the federation ends; returns how it ended, in words for people. @throws Stop
  std::string run() {
    return effort_.until_done("talking to the server", [this] { return session(); });
  }

 private:
  std::string session() {
    try {
      connect();
      prepare();
      if (work_) work_->rejoin();
      Session session(peer_.channel);
      session.say(hello());
      const auto look = seconds_to_look(config_.access.trust);
      for (const auto began = Clock::now(); seconds_since(began) < look;) {
        if (const auto message = session.next(0.05)) {
          if (const auto reply = take(*message)) session.say(*reply);
          if (message->has_federation_outcome()) {
            auto ending = std::async(std::launch::async, [&] { return collect(message->federation_outcome()); });
            // A slow line may take long for it, and the server leaves after a minute without a message (R-RND-9).
            do {
              session.say(collecting());
            } while (ending.wait_for(Seconds(20)) != std::future_status::ready);
            auto said = ending.get();
            session.close();
            return said;
          }
        }
        if (const auto sign = work_ ? work_->sign_of_life() : std::nullopt) session.say(*sign);
        if (work_ && work_->stop()) {
          session.leave(work_->stop()->what());
          throw *work_->stop();
        }
        if (stop_signal != 0) {  // all that is to survive the process lies on disk
          session.leave("stopped by its operator");
          _exit(128 + stop_signal);
        }
      }
      throw Trouble("it is time for the next certificate");
    } catch (const Superseded&) {
      // Twice within five minutes means that another process uses the name (R-HEL-9).
      const auto before = std::exchange(superseded_at_, Clock::now());
      if (!before || seconds_since(*before) >= 300) throw;
      throw Stop(Exit::kReplaced, "another client called " + config_.access.name + " took over: give another --name");
    } catch (const Refusal& error) {
      throw Stop(Exit::kDefect, std::string("the server refused: ") + error.what());
    }
  }

  /// Keep to a connection that works; else, or when it was time for the next certificate, make a new one.
  void connect() {
    const auto& [server, name, trust] = config_.access;
    const bool works = peer_.channel != nullptr && peer_.channel->GetState(false) == GRPC_CHANNEL_READY;
    if (!works) take_channel(make_channel(server, trust));
    if (renew_if_due(trust, peer_.channel)) take_channel(make_channel(server, trust));
  }

  void take_channel(std::shared_ptr<grpc::Channel> channel) {
    const std::lock_guard lock(peer_mutex_);
    peer_.channel = std::move(channel);
  }

  /// The server's end as it is now, for the thread that works.
  Peer peer() const {
    const std::lock_guard lock(peer_mutex_);
    return peer_;
  }

  /// Open the site's data for the federation's task, and again if it has other settings now. A server never names the
  /// code that is run (R-SCH-1).
  void prepare() {
    v1::DescribeTaskResponse described;
    require_ok(v1::NegotiationService::NewStub(peer_.channel)->DescribeTask(effort_.call(kAskSeconds), {}, &described));
    const Settings settings(described.task_settings().begin(), described.task_settings().end());
    if (site_ && settings == settings_) return;
    work_.reset();
    site_.reset(new Site{open_task_(settings, config_.data), config_.state_dir});
    settings_ = settings;
  }

  Request hello() const {
    Request request;
    auto& hello = *request.mutable_hello();
    hello.mutable_protocol()->set_min(kProtocol);
    hello.mutable_protocol()->set_max(kProtocol);
    hello.set_client_name(config_.access.name);
    hello.set_schema_sha256(sha256(canonical_schema(site_->task.schema)));
    *hello.mutable_meaning() = site_->task.meaning;
    hello.set_num_examples(site_->task.num_examples);
    hello.mutable_limits()->set_max_epochs(config_.max_epochs);
    hello.set_software("fedstream-cpp 0.1.0");
    hello.set_synthetic_data(site_->task.synthetic);
    return request;
  }

  /// What a message changes, and the reply to it, if any. What is of another kind, or about an offer that is not worked
  /// on, is ignored (R-EVO-2, R-RND-6).
  std::optional<Request> take(const v1::NegotiateResponse& message) {
    const auto is_ours = [this](const auto& about) { return work_ && work_->is_for(about.offer_id()); };
    if (message.has_offer()) return take_offer(message.offer());
    if (message.has_confirm() && is_ours(message.confirm()))
      work_->confirm(message.confirm(), [this] { return peer(); });
    if (message.has_lease_renewal() && is_ours(message.lease_renewal())) work_->renew(message.lease_renewal());
    if (message.has_withdraw() && is_ours(message.withdraw())) work_->drop(message.withdraw().reason());
    if (message.has_cancel() && is_ours(message.cancel())) work_->drop(message.cancel().reason());
    if (!message.has_lease_renewal()) log_line("info", "the server says", json_of(message));
    if (message.has_declined()) throw Stop(Exit::kDeclined, describe(message.declined()));
    if (message.has_welcome()) take_terms(message.welcome());
    if (!message.has_schema_query()) return std::nullopt;
    Request reply;
    *reply.mutable_schema_part()->mutable_tensors() = site_->task.schema;
    reply.mutable_schema_part()->set_last(true);
    return reply;
  }

  void take_terms(const v1::Welcome& welcome) {
    if (welcome.protocol() != kProtocol) {  // the only one that the hello offers
      throw Stop(Exit::kDefect, "the server welcomes this client in version " + std::to_string(welcome.protocol()) +
                                    " of the protocol, and it speaks " + std::to_string(kProtocol));
    }
    const std::lock_guard lock(peer_mutex_);
    auto& terms = peer_.terms = welcome;
    if (terms.max_chunk_bytes() == 0) terms.set_max_chunk_bytes(kDefaultChunkBytes);
    if (terms.max_chunk_bytes() > kMaxChunkBytes) terms.set_max_chunk_bytes(kMaxChunkBytes);
    if (terms.window_bytes() == 0) terms.set_window_bytes(kDefaultWindowBytes);
    effort_.advance();
  }

  /// One that comes again is about the same work, unless that is over: then the server has lost the update.
  Request take_offer(const v1::Offer& offer) {
    if (!work_ || !work_->is_for(offer.offer_id())) {
      work_.reset();  // which waits for its end, before another one begins
      work_ = std::make_unique<Work>(*site_, offer);
    }
    const auto reply = work_->answer(config_.max_epochs);
    log_line("info", "offer", {{"round", offer.round()}, {"answer", json_of(reply)}});
    return reply;
  }

  static std::string describe(const v1::Declined& declined) {
    const auto shown = [](const v1::TensorSpec& spec) {
      return spec.name() + ' ' + v1::DataType_Name(spec.dtype()) + " [" + absl::StrJoin(spec.shape(), ",") + "] " +
             (spec.trainable() ? "trainable" : "frozen");
    };
    std::string text = "the server declined this client: " + declined.message();
    for (const auto& one : declined.differences()) {
      text += "\n  the federation has " + (one.has_server() ? shown(one.server()) : "nothing") + ", this client " +
              (one.has_client() ? shown(one.client()) : "nothing");
    }
    if (!declined.has_server_meaning()) return text;
    return text + "\n  the federation means " + json_of(declined.server_meaning()).dump() + "\n  this client means " +
           json_of(declined.client_meaning()).dump();
  }

  /// That the final model is still fetched; there is no offer any more that it could be said of.
  static Request collecting() {
    Request request;
    request.mutable_progress()->set_offer_id("final model");
    request.mutable_progress()->set_phase(v1::PHASE_DOWNLOADING);
    return request;
  }

  /// Fetch the best model while the server is still there (R-RND-9), and write it for people. It is given up once
  /// nothing has come for three minutes, most of which may be one chunk.
  std::string collect(const v1::FederationOutcome& outcome) {
    work_.reset();
    const auto ending = "federation finished: " + outcome.reason() + '\n';
    try {
      Effort effort(180);
      Transfer transfer(*site_, peer_, effort);
      const auto model = effort.until_done(
          "fetching the final model", [&] { return transfer.download(outcome.best_model().model_digest().sha256()); });
      const auto file = config_.out / "GLOBAL_MODEL.safetensors";
      fs::create_directories(config_.out);
      write_durably(file, safetensors(site_->task.schema, model));
      return ending + "saved " + file.string();
    } catch (const fs::filesystem_error& error) {
      throw Stop(Exit::kBadOption, ending + "but its model could not be written (" + error.what() +
                                       "): make room, and ask the coordinator for it");
    } catch (const std::runtime_error& error) {  // a new session would find no server
      throw Stop(Exit::kUnreachable, ending + "but no final model is here (" + error.what() + "): ask the coordinator");
    }
  }

  const RunConfig config_;
  const OpenTask open_task_;
  Effort effort_;
  mutable std::mutex peer_mutex_;
  Peer peer_;  // changed by the deciding thread alone, under the mutex
  Settings settings_;
  std::optional<Clock::time_point> superseded_at_;
  std::unique_ptr<Site> site_;
  std::unique_ptr<Work> work_;
};

}  // namespace fedstream::client
