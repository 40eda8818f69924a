/// The words of the command line.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "durable.h"
#include "reply.h"
#include "trust.h"

namespace fedstream::client {

struct RunConfig {
  std::string server;
  std::string name;
  Trust trust;
  fs::path data;
  fs::path state_dir;
  fs::path out;
  SiteLimits limits;
  std::optional<double> give_up_after_seconds;
};

struct JoinConfig {
  std::string token;
  std::string server;     // empty for as the token says
  std::string enrolment;  // the same
  fs::path identity;
};

extern const char kHelp[];

/// @param words after the command's own
/// @throws Stop with kBadConfiguration
RunConfig read_run(const std::vector<std::string>& words);
JoinConfig read_join(const std::vector<std::string>& words);

}  // namespace fedstream::client
