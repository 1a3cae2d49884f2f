// Read before every file of the test library: the operators' library takes the name daflow_cuda_host, and what the
// launch glue registers for CUDA is registered for the CPU, where cuda_host.h runs it.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#define daflow_ext daflow_cuda_host
#define CUDA CPU
