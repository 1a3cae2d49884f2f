// The instruction set in use by the CPU kernels: the best of this machine unless a test or benchmark lowered it.
#pragma once

#include "common/isa.h"

namespace daflow {

Isa current_isa();

}  // namespace daflow
