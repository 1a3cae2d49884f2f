// How a CPU kernel that is compiled once per instruction set is declared and called. Free of torch.
//
//   #define DECLARE(isa) namespace isa { void scale(const float* in, float* out, int64_t n); }
//   DAFLOW_EACH_ISA(DECLARE)                      // in scale_isa.h; scale_isa.cpp defines it in namespace DAFLOW_ISA
//   DAFLOW_SELECT_ISA(scale)(in, out, n);         // in scale.cpp
#pragma once

#include "cpu/capability.h"

#if defined(__x86_64__)
#define DAFLOW_EACH_ISA(declare) declare(isa_generic) declare(isa_avx2) declare(isa_avx512) declare(isa_avx512_bf16)
#define DAFLOW_SELECT_ISA(function) \
  daflow::select_isa(&isa_generic::function, &isa_avx2::function, &isa_avx512::function, &isa_avx512_bf16::function)
#else
#define DAFLOW_EACH_ISA(declare) declare(isa_generic)
#define DAFLOW_SELECT_ISA(function) (&isa_generic::function)
#endif

namespace daflow {

// The dtypes of the kernels, named without torch.
enum class Element : int { f32, f16, bf16, f64 };

template <class Function>
Function* select_isa(Function* generic, Function* avx2, Function* avx512, Function* avx512_bf16) {
  Function* const functions[] = {generic, avx2, avx512, avx512_bf16};
  return functions[static_cast<int>(current_isa())];
}

}  // namespace daflow
