#include "log.h"

#include <google/protobuf/util/json_util.h>
#include <google/protobuf/wrappers.pb.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <ctime>

namespace fedstream::client {

std::string json_of(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  // It fails for text that is no UTF-8, which may come from file names.
  return google::protobuf::util::MessageToJsonString(message, &json, options).ok() ? json : "\"(unreadable)\"";
}

std::string json_text(const std::string& text) {
  google::protobuf::StringValue value;
  value.set_value(text);
  return json_of(value);
}

Fact::Fact(std::string key_, double number) : key(std::move(key_)), json("null") {
  if (!std::isfinite(number)) return;
  char digits[40];
  std::snprintf(digits, sizeof digits, "%.15g", number);
  json = digits;
}

void Log::write(const char* level, const std::string& event, const Facts& facts) const {
  char now[40];
  const std::time_t seconds = std::time(nullptr);
  std::tm utc{};
  std::strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&seconds, &utc));
  std::string line = "{\"client\": " + json_text(client_);
  for (const auto& fact : facts) line += ", " + json_text(fact.key) + ": " + fact.json;
  line += ", \"event\": " + json_text(event) + ", \"level\": \"" + level + "\", \"timestamp\": \"" + now + "\"}\n";
  // If standard error is gone, there is nobody to tell.
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace fedstream::client
