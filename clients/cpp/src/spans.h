/// Spans of time as they travel.
#pragma once

#include <google/protobuf/duration.pb.h>

#include <algorithm>
#include <cmath>

namespace fedstream::client {

inline double seconds_of(const google::protobuf::Duration& span) {
  return static_cast<double>(span.seconds()) + span.nanos() / 1e9;
}

/// R-TIM-7: never longer than a span may be.
inline google::protobuf::Duration span_of(double seconds) {
  const double whole = std::floor(std::min(seconds, 315'576'000'000.0));
  google::protobuf::Duration span;
  span.set_seconds(static_cast<std::int64_t>(whole));
  span.set_nanos(std::clamp(static_cast<std::int32_t>((seconds - whole) * 1e9), 0, 999'999'999));
  return span;
}

}  // namespace fedstream::client
