/// What can go wrong, in kinds, since each asks for something else:
///
///     Refusal    the server decided; `reason` is one of the contract's. Only LIMIT_EXCEEDED is waited for.
///     Trouble    the network, a proxy or a crash: come back, ask how far things are, resume.
///     Unwanted   the server does not wait for this update any more: drop it.
///     Cancelled  this client does not want the work any more.
///     Stop       this client is to end, with an exit code and words for its operator.
#pragma once

#include <map>
#include <stdexcept>
#include <string>

namespace fedstream::client {

/// How the program ends; the same as of the Python client.
enum class Exit {
  kFinished = 0,
  kDefect = 1,
  kBadConfiguration = 2,
  kBadData = 3,
  kDeclined = 4,
  kUnreachable = 5,
  kUntrusted = 6,
  kTrainingFailed = 7,
  kReplaced = 8,
};

struct Refusal : std::runtime_error {
  Refusal(std::string reason_, const std::string& message, std::map<std::string, std::string> metadata_ = {},
          double retry_seconds_ = 1)
      : std::runtime_error(message),
        reason(std::move(reason_)),
        metadata(std::move(metadata_)),
        retry_seconds(retry_seconds_) {}

  std::string reason;
  std::map<std::string, std::string> metadata;
  double retry_seconds;  // when to come back, with LIMIT_EXCEEDED
};

struct Trouble : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Unwanted : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Cancelled : std::runtime_error {
  Cancelled() : std::runtime_error("not wanted any more") {}
};

struct Stop : std::runtime_error {
  Stop(Exit exit_, const std::string& message) : std::runtime_error(message), exit(exit_) {}

  Exit exit;
};

}  // namespace fedstream::client
