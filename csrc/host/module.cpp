// daflow_ext._host: host code that speaks NumPy, not torch. Here: how the package was built, what the CPU offers.
#include <pybind11/pybind11.h>

#include "common/isa.h"
#include "host/scene_module.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["compiler"] = "gcc-compatible " __VERSION__;
  info["torch_headers"] = DAFLOW_TORCH_VERSION;
  info["cpu_instruction_sets"] = DAFLOW_CPU_ISAS;
  info["cuda"] = static_cast<bool>(DAFLOW_BUILT_CUDA);
  info["cuda_archs"] = DAFLOW_BUILT_CUDA ? DAFLOW_CUDA_ARCHS : "";
  return info;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Host code of daflow_ext that speaks NumPy, not torch.";
  m.def("build_info", &build_info, "How the compiled libraries were built: compiler, torch headers, targets.");
  m.def(
      "cpu_capability", [] { return daflow::isa_name(daflow::best_isa()); },
      "The best instruction set of this machine that the CPU kernels are compiled for.");
  bind_scenes(m);
}
