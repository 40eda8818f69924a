/// 1. What all else stands on: kinds of errors, and log lines.
#pragma once

#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>
#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

namespace fedstream::client {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;
inline double seconds_since(Clock::time_point began) { return Seconds(Clock::now() - began).count(); }

// --- What can go wrong, in kinds, since each asks for something else ---

/// How the program ends; the same numbers as of the Python client.
enum class Exit { kFinished, kDefect, kBadOption, kBadData, kDeclined, kUnreachable, kUntrusted, kReplaced = 8 };

/// This client is to end, with words for its operator.
struct Stop : std::runtime_error {
  Stop(Exit exit_, const std::string& message) : std::runtime_error(message), exit(exit_) {}
  Exit exit;
};
[[noreturn]] inline void wrong(const std::string& message) { throw Stop(Exit::kBadOption, message); }

/// The server decided, for a reason of the contract's that the caller has to know.
struct Refusal : std::runtime_error {
  Refusal(std::string reason_, const std::string& message) : std::runtime_error(message), reason(std::move(reason_)) {}
  std::string reason;
};

/// A cut, a crash or a limit: come back after so many seconds at least, ask how far things are, resume.
struct Trouble : std::runtime_error {
  explicit Trouble(const std::string& message, double at_least_ = 0)
      : std::runtime_error(message), at_least(at_least_) {}
  double at_least;
};

/// Nobody wants this work any more, here or at the server.
struct Dropped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// --- Log lines for programs and people: one JSON object each, on standard error ---

using Json = nlohmann::ordered_json;

/// The name that all lines of this process say.
inline std::string log_name;

/// Threads may share it: each line is one write.
inline void log_line(const char* level, const std::string& event, const Json& facts = Json::object()) {
  using google::protobuf::util::TimeUtil;
  Json line{{"event", event}, {"level", level}, {"client", log_name}};
  line["timestamp"] = TimeUtil::ToString(TimeUtil::GetCurrentTime());
  line.update(facts);
  const auto text = line.dump(-1, ' ', false, Json::error_handler_t::replace) + '\n';  // file names may be no UTF-8
  // If standard error is gone, there is nobody to tell.
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, text.data(), text.size());
}

/// A message of the contract as JSON, with the fields' names in the proto.
inline Json json_of(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  const bool is_text = google::protobuf::util::MessageToJsonString(message, &json, options).ok();
  return is_text ? Json::parse(json) : Json("(it cannot be shown)");
}

}  // namespace fedstream::client
