// Matrix products on tensor cores, and copies to shared memory that run beside them (sm_80 and later). Like
// device.cuh: thin wrappers, which tests/cuda_host provides on the CPU.
//
// A warp multiplies A [16 rows] by the transpose of B [8 rows], both over a step of 32 bytes of every row: 16 channels
// of Half or BFloat16, 8 of float (as tf32). Counted in bytes, all three types spread a step over the lanes alike, with
// g = lane / 4 and t = lane % 4:
//
//     a[0]: row g,     bytes 4t ... 4t + 3          b[0]: row g, bytes 4t ... 4t + 3
//     a[1]: row g + 8, the same bytes               b[1]: row g, bytes 16 + 4t ... 16 + 4t + 3
//     a[2]: row g,     bytes 16 + 4t ...            c[0], c[1]: row g of A with rows 2t, 2t + 1 of B
//     a[3]: row g + 8, bytes 16 + 4t ...            c[2], c[3]: row g + 8 of A with the same
//
// Source: PTX ISA, "Matrix fragments for mma.m16n8k16" and "for mma.m16n8k8", "ldmatrix", "cp.async".
#pragma once

#include "common/dtype.cuh"

namespace daflow {
namespace cuda {

constexpr int kMmaRowsA = 16, kMmaRowsB = 8, kMmaBytes = 32;

}  // namespace cuda
}  // namespace daflow

#ifdef DAFLOW_CUDA_HOST
#include "mma_host.h"
#else

namespace daflow {
namespace cuda {

__device__ __forceinline__ uint32_t shared_address(const void* address) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(address));
}

// c += A B^T in float32; the pointer only names the type.
__device__ __forceinline__ void multiply_add(const Half*, float (&c)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void multiply_add(const BFloat16*, float (&c)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// a and b must hold tf32 (round_to_mma).
__device__ __forceinline__ void multiply_add(const float*, float (&c)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A float's bits, rounded to the nearest tf32 (10 bits of fraction), ties away from zero.
__device__ __forceinline__ uint32_t float_to_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

// Four matrices of 8 rows x 16 bytes from shared memory: lane i gives the aligned address of row i % 8 of matrix i / 8
// and gets bytes 4t ... 4t + 3 of row g of matrix m as out[m]. The whole warp takes part.
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same for matrices of 8 x 8 two-byte elements, each transposed.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// Starts a copy of 16 aligned bytes to shared memory; zeros where not `use` (nothing is read then). Copies started
// since the last commit_copies() make a group; wait_for_copies<n>() returns when all but the n latest groups of this
// thread have arrived; a barrier then shows them to the others.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool use) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(use ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace cuda
}  // namespace daflow
#endif

namespace daflow {
namespace cuda {

// Rounds a fragment of float to what the product takes; half precision is taken as it is.
template <class T, int kCount>
__device__ __forceinline__ void round_to_mma(const T*, uint32_t (&)[kCount]) {}
template <int kCount>
__device__ __forceinline__ void round_to_mma(const float*, uint32_t (&fragment)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) fragment[i] = float_to_tf32(fragment[i]);
}

// Where c[i] of this lane belongs: row of A, row of B.
__device__ __forceinline__ int product_row(int i) { return lane_index() / 4 + i / 2 * 8; }
__device__ __forceinline__ int product_column(int i) { return lane_index() % 4 * 2 + i % 2; }

}  // namespace cuda
}  // namespace daflow
