// SPDX-License-Identifier: Apache-2.0
//
// Finds PTX in what nvcc embeds in an object file.
#pragma once

#include <string>

namespace quarry::emulator::runtime {

/// The text of the newest PTX that a device of `compute_capability` (10 * major + minor) runs.
/// `wrapper` is what __cudaRegisterFatBinary() is given. Throws std::runtime_error, which says what
/// was found instead and what to compile with, where the container is not the known one, its
/// PTX is compressed, or it holds none that fits.
std::string find_ptx(const void* wrapper, int compute_capability);

}  // namespace quarry::emulator::runtime
