/// One stream of the negotiation, from hello to its end.
///
///     greeting --welcome--> member --federation_outcome--> over
///     greeting --schema_query--> greeting    the schema is sent
///     greeting --declined--> over            throws Stop
///     any --cut--> over                      throws Trouble; the work goes on, and a new session takes it up
///
/// One thread reads and answers; a second one tells how the work goes.
#pragma once

#include <functional>
#include <mutex>

#include "bench.h"

namespace fedstream::client {

class Session {
 public:
  /// What the session asks of the client.
  struct Hooks {
    std::function<void()> welcomed;
    /// Fetches the final model while the server is still there.
    std::function<void(const v1::FederationOutcome&, const Terms&)> collect;
    /// Whether the certificate was renewed, so that the connection is to be made anew.
    std::function<bool()> renewed;
  };

  Session(Site& site, Bench& bench, Hooks hooks);

  /// Say hello, then listen to the end; returns how the federation ended.
  /// @throws Stop, Trouble, Refusal
  v1::FederationOutcome run(const v1::Hello& hello);

  /// Say good-bye, and wait for the server to end the stream, for a few seconds at most. From another thread.
  void leave(const std::string& reason);

 private:
  /// The lease of what was agreed, and what was told of it last.
  struct Lease {
    std::string offer_id;
    double seconds = 0;
    int told = -1;
    Clock::time_point told_at;
  };

  v1::FederationOutcome listen();
  void handle(const v1::NegotiateResponse& message);
  void answer_schema_query();
  void confirm(const v1::Confirmation& confirmation);
  void renew(const v1::LeaseRenewal& renewal);
  void close();
  void keep();
  void look_at_certificate();
  void tell_progress();
  void write(const v1::NegotiateRequest& message);

  Site& site_;
  Bench& bench_;
  const Hooks hooks_;
  Talk stream_;
  Terms terms_;
  Cancel ended_;
  std::mutex writing_;     // one write at a time; held over nothing else
  bool has_left_ = false;  // guarded by writing_
  std::mutex mutex_;
  Lease lease_;  // guarded by mutex_
};

}  // namespace fedstream::client
