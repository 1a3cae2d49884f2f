// Fewer page faults and address translations for large tensors.
#pragma once

#include "common/check.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace daflow {

// Asks for huge pages under a large fresh tensor. glibc maps new memory for every tensor of some MiB, as its threshold
// never reaches an aligned request, and taking it 4 KiB at a time costs as much as a fifth of the lookup at 55x128, and
// up to two fifths of bilinear_sample there. Windows of large feature maps reach over more pages than the processor's
// table of addresses holds.
inline void advise_huge_pages(const Tensor& tensor) {
#if defined(__linux__)
  constexpr uintptr_t page = uintptr_t{1} << 21, smallest = 2 * page;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t end = begin + tensor.numel() * tensor.element_size();
  const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
  if (end - begin > smallest) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // only a hint
#endif
}

}  // namespace daflow
