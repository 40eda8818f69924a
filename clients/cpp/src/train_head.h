/// The task `brain_mri_head`: logistic regression with Adam on features, as fedtask/brain_mri_head/training.py has it.
#pragma once

#include <string>
#include <vector>

#include "training.h"

namespace fedstream::client {

Trainer head_trainer();

/// The order of the examples in an epoch: by the SHA-256 of the text `SEED EPOCH INDEX`.
std::vector<std::size_t> epoch_order(std::uint64_t seed, std::uint32_t epoch, std::size_t num);

/// The order cut into parts of nearly equal size, of which the first are longer by one.
std::vector<std::vector<std::size_t>> batches(const std::vector<std::size_t>& order, std::size_t batch_size);

}  // namespace fedstream::client
