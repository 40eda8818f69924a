/// Sending an update: manifest, the tensors the server lacks, finish; resumed at `committed_size` after any cut.
///
///     STATUS, if it may have been begun before --> MANIFEST --missing tensors--> BODY --all sent--> FINISH --ack-->
///     done BODY, FINISH --cut--> STATUS --> MANIFEST (the server has none) | BODY | FINISH | unwanted
#pragma once

#include "site.h"

namespace fedstream::client {

/// The update on disk is not what was trained any more.
struct Damaged : std::runtime_error {
  Damaged() : std::runtime_error("the update was damaged on this disk") {}
};

/// Send until the server has the update durably.
/// @param begun_before an earlier process may have sent some of it
/// @returns why it was kept aside; empty if it is in the round
/// @throws Unwanted, Cancelled, Damaged, Refusal
std::string send_update(Site& site, const KeptUpdate& update, const Terms& terms, bool begun_before,
                        const OnBytes& on_bytes, const Cancel& cancel);

}  // namespace fedstream::client
