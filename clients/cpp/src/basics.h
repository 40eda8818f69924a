/// 1. What all else stands on: kinds of errors, log lines, and files that survive a power cut.
#pragma once

#include <fcntl.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>
#include <sys/file.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace fedstream::client {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;
inline double seconds_since(Clock::time_point began) { return Seconds(Clock::now() - began).count(); }

/// How the program ends; the same numbers as of the Python client.
enum class Exit {
  kFinished,
  kDefect,
  kBadOption,
  kBadData,
  kDeclined,
  kUnreachable,
  kUntrusted,
  kTrainingFailed,
  kReplaced
};

/// This client is to end, with words for its operator.
struct Stop : std::runtime_error {
  Stop(Exit exit_, const std::string& message) : std::runtime_error(message), exit(exit_) {}
  Exit exit;
};
[[noreturn]] inline void wrong(const std::string& message) { throw Stop(Exit::kBadOption, message); }

/// A cut, a crash or a limit: come back after so many seconds at least, ask how far things are, resume.
struct Trouble : std::runtime_error {
  explicit Trouble(const std::string& message, double at_least_ = 0)
      : std::runtime_error(message), at_least(at_least_) {}
  double at_least;
};

/// Something came, or arrived at the server, damaged: come back, but not for ever.
struct Damage : Trouble {
  using Trouble::Trouble;
};

/// Somebody else does it under the same name, or we do after a cut.
struct Superseded : Trouble {
  using Trouble::Trouble;
};

/// The server's last word on a call.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Nobody wants this work any more, here or at the server.
struct Dropped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The fine-tune itself failed, for a reason that may be there the next time too.
struct TrainingFailed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Json = nlohmann::ordered_json;

/// The name that all lines of this process say.
inline std::string log_name;

/// A line for programs and people: a JSON object, on standard error. Threads may share it: each line is one write.
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

[[noreturn]] inline void fail(const fs::path& file) {
  throw fs::filesystem_error("file", file, std::error_code(errno, std::generic_category()));
}

/// Make what a file or a folder holds durable.
inline void sync(const fs::path& place) {
  const int descriptor = ::open(place.c_str(), O_RDONLY | O_CLOEXEC);
  const bool is_kept = descriptor >= 0 && ::fsync(descriptor) == 0;
  if (descriptor >= 0) ::close(descriptor);
  if (!is_kept) fail(place);
}

/// Make `file` hold `data`, whole or not at all; once this returns, a power cut cannot undo it. Files are their owner's
/// alone by the umask that the command sets. @throws fs::filesystem_error
inline void write_durably(const fs::path& file, const std::string& data) {
  const fs::path temporary = file.string() + ".partial";
  if (!(std::ofstream(temporary, std::ios::binary) << data << std::flush)) fail(temporary);
  sync(temporary);
  fs::rename(temporary, file);
  sync(file.has_parent_path() ? file.parent_path() : ".");
}

/// Make a folder, and those above it, so that a power cut cannot take it with what is in it.
inline void make_folder(const fs::path& folder) {
  if (folder.empty() || fs::is_directory(folder)) return;
  const auto above = folder.parent_path();
  make_folder(above);
  fs::create_directory(folder);
  sync(above.empty() ? "." : above);
}

/// Keep a folder to this process until it ends, however it ends. @returns false if another one has it
inline bool lock_folder(const fs::path& folder) {
  const int descriptor = ::open((folder / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);  // and stays open
  if (descriptor >= 0 && ::flock(descriptor, LOCK_EX | LOCK_NB) == 0) return true;
  if (descriptor < 0 || errno != EWOULDBLOCK) fail(folder / "lock");
  return false;
}

inline std::string read_file(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::string content(std::istreambuf_iterator<char>(stream), {});
  if (stream.bad() || !stream.is_open()) fail(file);
  return content;
}

}  // namespace fedstream::client
