/// A client from start to end: the task described, the data opened, one session after another, the final model kept.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "backoff.h"
#include "options.h"
#include "session.h"

namespace fedstream::client {

class Client {
 public:
  Client(RunConfig config, Trainer trainer);

  /// Take part until the federation ends; returns how it ended, in words for people.
  /// @throws Stop
  std::string run();

  /// Tell the server that this client goes, if there is a session. From another thread.
  void leave(const std::string& reason);

 private:
  v1::FederationOutcome one_session();
  v1::FederationOutcome talk();
  bool renew();
  void prepare(const v1::DescribeTaskResponse& task);
  v1::Hello hello() const;
  void collect(const v1::FederationOutcome& outcome, const Terms& terms);
  [[noreturn]] void judge(const Refusal& error);
  [[noreturn]] void judge_rival();

  const RunConfig config_;
  const Trainer trainer_;
  const Log log_;
  const Cancel never_;
  Connection connection_;
  std::optional<Settings> settings_;
  std::unique_ptr<Site> site_;
  std::unique_ptr<Bench> bench_;
  std::mutex mutex_;
  Session* session_ = nullptr;  // guarded by mutex_
  int sessions_ = 0;
  std::optional<Clock::time_point> superseded_at_;
  std::string saved_;
};

}  // namespace fedstream::client
