/// Log lines for programs and people: one JSON object each, on standard error.
#pragma once

#include <google/protobuf/message.h>

#include <string>
#include <vector>

namespace fedstream::client {

/// Text as JSON, with its quotes.
std::string json_text(const std::string& text);

/// A message as JSON in one line, with the fields' names in the proto.
std::string json_of(const google::protobuf::Message& message);

/// One thing that a log line says.
struct Fact {
  Fact(std::string key_, const std::string& text) : key(std::move(key_)), json(json_text(text)) {}
  Fact(std::string key_, const char* text) : Fact(std::move(key_), std::string(text)) {}
  Fact(std::string key_, double number);

  std::string key;
  std::string json;
};

using Facts = std::vector<Fact>;

/// Writes lines of one client. Threads may share it: each line is one write.
class Log {
 public:
  explicit Log(std::string client) : client_(std::move(client)) {}

  void info(const std::string& event, const Facts& facts = {}) const { write("info", event, facts); }
  void warning(const std::string& event, const Facts& facts = {}) const { write("warning", event, facts); }
  void error(const std::string& event, const Facts& facts = {}) const { write("error", event, facts); }

 private:
  void write(const char* level, const std::string& event, const Facts& facts) const;

  std::string client_;
};

}  // namespace fedstream::client
