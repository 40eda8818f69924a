/// 1. What all else stands on: kinds of errors, log lines, the wish to end some work, the words of a command.
#pragma once

#include <absl/strings/numbers.h>
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>
#include <grpcpp/client_context.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace fedstream::client {

using Clock = std::chrono::steady_clock;
inline double seconds_since(Clock::time_point began) {
  return std::chrono::duration<double>(Clock::now() - began).count();
}

// --- What can go wrong, in kinds, since each asks for something else ---

/// How the program ends, from 0 on; the same as of the Python client.
enum class Exit { kFinished, kDefect, kBadOption, kBadData, kDeclined, kUnreachable, kUntrusted, kFailed, kReplaced };

/// This client is to end, with words for its operator.
struct Stop : std::runtime_error {
  Stop(Exit exit_, const std::string& message) : std::runtime_error(message), exit(exit_) {}
  Exit exit;
};

/// The server decided; `reason` is one of the contract's. Only LIMIT_EXCEEDED is waited for, so many seconds.
struct Refusal : std::runtime_error {
  Refusal(std::string reason_, const std::string& message, double retry_seconds_ = 1)
      : std::runtime_error(message), reason(std::move(reason_)), retry_seconds(retry_seconds_) {}
  std::string reason;
  double retry_seconds;
};

/// The network, a proxy or a crash: come back, ask how far things are, resume.
struct Trouble : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Nobody wants this work any more, here or at the server.
struct Dropped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// --- Log lines for programs and people: one JSON object each, on standard error ---

/// A message as JSON in one line, with the fields' names in the proto.
inline std::string json_of(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  // It fails for text that is no UTF-8, which may come from file names.
  return google::protobuf::util::MessageToJsonString(message, &json, options).ok() ? json : "\"(unreadable)\"";
}

/// One thing that a log line says.
struct Fact {
  Fact(const std::string& text) { value.set_string_value(text); }
  Fact(const char* text) { value.set_string_value(text); }
  template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>>
  Fact(Number number) {
    value.set_number_value(double(number));
  }
  google::protobuf::Value value;
};
using Facts = std::map<std::string, Fact>;

/// The name that all lines of this process say.
inline std::string log_name;

/// Threads may share it: each line is one write.
inline void log_line(const char* level, const std::string& event, const Facts& facts = {}) {
  google::protobuf::Struct line;
  const Facts always{
      {"event", event},
      {"level", level},
      {"client", log_name},
      {"timestamp", google::protobuf::util::TimeUtil::ToString(google::protobuf::util::TimeUtil::GetCurrentTime())}};
  for (const auto* some : {&facts, &always}) {
    for (const auto& [key, fact] : *some) (*line.mutable_fields())[key] = fact.value;
  }
  const auto text = json_of(line) + '\n';
  // If standard error is gone, there is nobody to tell.
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, text.data(), text.size());
}

// --- Ending and hurrying work from another thread ---

class Cancel {
 public:
  /// End it: what sleeps wakes up, what is called is cut.
  void request() {
    const std::lock_guard lock(mutex_);
    requested_ = true;
    for (auto* call : calls_) call->TryCancel();
    changed_.notify_all();
  }

  /// The server is back: whoever waits to try again need not wait any longer.
  void hurry() {
    const std::lock_guard lock(mutex_);
    ++hurries_;
    changed_.notify_all();
  }

  /// @throws Dropped
  void check() const {
    const std::lock_guard lock(mutex_);
    if (requested_) throw Dropped("not wanted any more");
  }

  /// Sleep; @returns whether it was cut short by `hurry`.
  /// @throws Dropped
  bool sleep(double seconds, bool can_hurry = false) const {
    std::unique_lock lock(mutex_);
    const auto before = hurries_;
    const bool woken = changed_.wait_for(lock, std::chrono::duration<double>(seconds),
                                         [&] { return requested_ || (can_hurry && hurries_ != before); });
    if (requested_) throw Dropped("not wanted any more");
    return woken;
  }

  /// Calls to cut. @throws Dropped
  void add(grpc::ClientContext* call) {
    const std::lock_guard lock(mutex_);
    if (requested_) throw Dropped("not wanted any more");
    calls_.insert(call);
  }
  void remove(grpc::ClientContext* call) {
    const std::lock_guard lock(mutex_);
    calls_.erase(call);
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::set<grpc::ClientContext*> calls_;
  bool requested_ = false;
  int hurries_ = 0;
};

// --- The words of a command line ---

[[noreturn]] inline void wrong(const std::string& message) { throw Stop(Exit::kBadOption, message); }

/// Options, each with its value, and what stands by itself under the empty name.
struct Words : std::map<std::string, std::string> {
  /// @param names what may stand there @param flag the one option that has no value
  Words(const std::vector<std::string>& words, const std::set<std::string>& names, const std::string& flag = "") {
    for (std::size_t at = 0; at < words.size(); ++at) {
      const auto equals = words[at].find('=');
      const bool is_option = words[at].rfind("--", 0) == 0, has_value = !is_option || words[at] == flag;
      const auto name = is_option ? words[at].substr(0, equals) : "";
      if (names.count(name) == 0 || count(name) != 0 ||
          (!has_value && equals == std::string::npos && ++at == words.size())) {
        wrong((name.empty() ? words[at] : name) + " is no option, or lacks its value; see --help");
      }
      (*this)[name] = has_value || equals == std::string::npos ? words[at] : words[at].substr(equals + 1);
    }
  }

  std::string get(const std::string& name, const std::string& otherwise = "") const {
    return count(name) != 0 ? at(name) : otherwise;
  }

  double number(const std::string& name, double otherwise) const {
    if (count(name) == 0) return otherwise;
    double value = -1;
    if (!absl::SimpleAtod(at(name), &value) || !std::isfinite(value) || value < 0) wrong(name + " is no number");
    return value;
  }
};

}  // namespace fedstream::client
