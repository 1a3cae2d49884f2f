// The instruction sets the CPU kernels are compiled for, and which of them this machine runs.
#pragma once

namespace daflow {

enum class Isa : int { generic = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };

inline const char* isa_name(Isa isa) {
  const char* const names[] = {"generic", "avx2", "avx512", "avx512_bf16"};
  return names[static_cast<int>(isa)];
}

inline Isa best_isa() {
#if defined(DAFLOW_EMULATE_AVX512)
  return Isa::avx512_bf16;
#elif defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx2 && avx512) return __builtin_cpu_supports("avx512bf16") ? Isa::avx512_bf16 : Isa::avx512;
  return avx2 ? Isa::avx2 : Isa::generic;
#else
  return Isa::generic;
#endif
}

}  // namespace daflow
