#include "cpu/capability.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <string>

namespace daflow {
namespace {

std::atomic<int>& selected() {
  static std::atomic<int> isa{static_cast<int>(best_isa())};
  return isa;
}

std::string cpu_capability() { return isa_name(current_isa()); }

void set_cpu_capability(std::string name) {
  for (int isa = 0; isa <= static_cast<int>(best_isa()); ++isa) {
    if (name == isa_name(static_cast<Isa>(isa))) {
      selected() = isa;
      return;
    }
  }
  STD_TORCH_CHECK(false, "set_cpu_capability: '", name, "' is unknown or not on this machine, whose best is ",
                  isa_name(best_isa()));
}

}  // namespace

Isa current_isa() { return static_cast<Isa>(selected().load(std::memory_order_relaxed)); }

}  // namespace daflow

STABLE_TORCH_LIBRARY_IMPL(daflow_ext, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&daflow::cpu_capability));
  m.impl("set_cpu_capability", TORCH_BOX(&daflow::set_cpu_capability));
}
