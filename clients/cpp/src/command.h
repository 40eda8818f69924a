/// The command: its words, signals and exit codes.
#pragma once

#include "training.h"

namespace fedstream::client {

/// @returns the exit code
int run_command(int argc, char** argv, const Trainer& trainer);

}  // namespace fedstream::client
