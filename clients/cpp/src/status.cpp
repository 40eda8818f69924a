#include "status.h"

#include <algorithm>

#include "errors.h"
#include "own.pb.h"

namespace fedstream::client {
namespace {

constexpr char kDomain[] = "fedstream.v1";
constexpr double kLongestDelaySeconds = 86'400;

/// Reads the first detail of that type of google.rpc; whether there is one that can be read.
template <class Message>
bool find_detail(const RpcStatus& status, const std::string& type, Message* found) {
  const std::string ending = "/google.rpc." + type;
  for (const auto& detail : status.details()) {
    const auto& url = detail.type_url();
    if (url.size() >= ending.size() && url.compare(url.size() - ending.size(), ending.size(), ending) == 0) {
      return found->ParseFromString(detail.value());
    }
  }
  return false;
}

}  // namespace

void require_ok(const grpc::Status& status) {
  if (status.ok()) return;
  RpcStatus details;
  ErrorInfo info;
  // What a proxy has mangled is not the server's word.
  if (!details.ParseFromString(status.error_details()) || !find_detail(details, "ErrorInfo", &info) ||
      info.domain() != kDomain) {
    throw Trouble("the call was cut (gRPC code " + std::to_string(status.error_code()) + ": " + status.error_message() +
                  ")");
  }
  RetryInfo retry;
  double seconds = 1;
  if (find_detail(details, "RetryInfo", &retry)) {
    seconds = static_cast<double>(retry.retry_delay().seconds()) + retry.retry_delay().nanos() / 1e9;
  }
  throw Refusal(info.reason(), details.message(), {info.metadata().begin(), info.metadata().end()},
                std::clamp(seconds, 0.0, kLongestDelaySeconds));
}

}  // namespace fedstream::client
