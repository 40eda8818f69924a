/// What the end of a call means: only a decision of the server carries an ErrorInfo of our domain.
#pragma once

#include <grpcpp/support/status.h>

namespace fedstream::client {

/// Nothing for OK.
/// @throws Refusal the server decided
/// @throws Trouble anything else
void require_ok(const grpc::Status& status);

}  // namespace fedstream::client
