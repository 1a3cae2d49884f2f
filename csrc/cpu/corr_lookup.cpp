// corr_lookup on the CPU; semantics in daflow_ext/ops/corr_lookup.py. Here are the checks, the outputs and the threads;
// the arithmetic is in the per-ISA files.
#include <torch/csrc/stable/library.h>

#include "common/check.h"
#include "cpu/corr_lookup_isa.h"
#include "cpu/huge_pages.h"
#include "cpu/tensor_element.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

namespace daflow {
namespace {

constexpr int64_t kMultiplicationsPerTask = 1 << 20;  // below that a second thread costs more than it saves

// Zero-filled scratch of one thread, aligned for the widest vectors.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : memory_(bytes + 64) {
    void* start = memory_.data();
    size_t space = memory_.size();
    start_ = std::align(64, bytes, start, space);
  }
  void* get() const { return start_; }

 private:
  std::vector<char> memory_;
  void* start_;
};

// Calls kernel(begin, end, scratch) on contiguous bands of [0, rows).
template <class F>
void parallel_rows(int64_t rows, int64_t multiplications_per_row, int64_t scratch_bytes, const F& kernel) {
  const int64_t grain = std::max<int64_t>(1, kMultiplicationsPerTask / std::max<int64_t>(1, multiplications_per_row));
  if (rows == 0) return;
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    const Scratch scratch(scratch_bytes);
    kernel(begin, end, scratch.get());
  });
}

FeatureMap feature_map(const Tensor& map) {
  const int64_t stride_c = map.size(1) == 1 ? 1 : map.stride(1);
  return {map.data_ptr(), map.size(2), map.size(3), map.stride(0), stride_c, map.stride(2), map.stride(3)};
}

// A [B, (N,) K, H, W].
QueryTensor query_tensor(const Tensor& tensor) {
  const int64_t rank = tensor.dim();
  return {tensor.data_ptr(),       element_of(tensor.scalar_type()),
          tensor.stride(0),        rank == 5 ? tensor.stride(1) : 0,
          tensor.stride(rank - 3), tensor.stride(rank - 2),
          tensor.stride(rank - 1)};
}

// The checked arguments with everything the description points to.
struct Arguments {
  Tensor fmap1;
  std::vector<Tensor> pyramid;
  std::vector<FeatureMap> levels;
  CorrLookup op;

  int64_t rows() const { return op.batch * op.fmap1.height; }  // of queries, one centre
  int64_t multiplications_per_row() const {
    return op.fmap1.width * op.num_levels * (op.window_y() + 1) * (op.window_x() + 1) * op.channels;
  }
  // [B, (N,) K, H, W] of the coordinates' rank.
  std::vector<int64_t> shape(const Tensor& coords, int64_t k) const {
    std::vector<int64_t> sizes(coords.sizes().begin(), coords.sizes().end());
    sizes[sizes.size() - 3] = k;
    return sizes;
  }
};

Arguments check_arguments(const char* name, const Tensor& fmap1, const std::vector<Tensor>& pyramid,
                          const Tensor& coords, const std::vector<int64_t>& radius, std::optional<double> scale,
                          const std::string& order) {
  constexpr int64_t most = std::numeric_limits<int>::max() / 4;
  STD_TORCH_CHECK(fmap1.dim() == 4 && is_floating(fmap1.scalar_type()), name,
                  ": fmap1 must be a floating [B, C, H, W], got ", spell(fmap1));
  STD_TORCH_CHECK(fmap1.size(1) > 0, name, ": fmap1 has no channels: ", spell(fmap1));
  STD_TORCH_CHECK(!pyramid.empty() && pyramid.size() < 63, name, ": expected 1 to 62 levels, got ", pyramid.size());
  check_radius(name, radius);
  STD_TORCH_CHECK(std::max(radius[0], radius[1]) < 1 << 14, name, ": radius must be below 16384, got (", radius[0],
                  ", ", radius[1], ")");
  Arguments args;
  CorrLookup& op = args.op;
  op.centres = check_coords(name, coords, fmap1.size(0), fmap1.size(2), fmap1.size(3));
  op.x_slow = check_order(name, order);
  for (const Tensor& level : pyramid) {
    STD_TORCH_CHECK(level.dim() == 4 && level.size(0) == fmap1.size(0) && level.size(1) == fmap1.size(1), name,
                    ": every level must be [", fmap1.size(0), ", ", fmap1.size(1), ", H_l, W_l] like fmap1, got ",
                    spell(level));
    STD_TORCH_CHECK(level.scalar_type() == fmap1.scalar_type(), name, ": levels and fmap1 must have one dtype");
    STD_TORCH_CHECK(level.is_cpu() && fmap1.is_cpu() && coords.is_cpu(), name, ": all tensors must be on the CPU");
    STD_TORCH_CHECK(level.size(2) <= most && level.size(3) <= most, name, ": level too large: ", spell(level));
    args.pyramid.push_back(channels_last(level));
    args.levels.push_back(feature_map(args.pyramid.back()));
  }
  args.fmap1 = fmap1;
  op.dtype = element_of(fmap1.scalar_type());
  op.batch = fmap1.size(0);
  op.channels = fmap1.size(1);
  op.fmap1 = feature_map(args.fmap1);
  op.levels = args.levels.data();
  op.num_levels = static_cast<int>(pyramid.size());
  op.coords = query_tensor(coords);
  op.radius_y = static_cast<int>(radius[0]);
  op.radius_x = static_cast<int>(radius[1]);
  op.scale = scale.value_or(1 / std::sqrt(static_cast<double>(op.channels)));
  return args;
}

// The same [B, (N,) K, H, W] with K densest in memory.
Tensor channels_to_last(const Tensor& tensor) {
  const int64_t k = tensor.dim() - 3;
  const Tensor moved = torch::stable::transpose(torch::stable::transpose(tensor, k, k + 1), k + 1, k + 2);
  const Tensor dense = torch::stable::contiguous(moved);
  return torch::stable::transpose(torch::stable::transpose(dense, k + 1, k + 2), k, k + 1);
}

// Products are exact here whatever allow_tf32 says.
Tensor corr_lookup(const Tensor& fmap1, const std::vector<Tensor>& fmap2_pyramid, const Tensor& coords,
                   const std::vector<int64_t>& radius, std::optional<double> scale, const std::string& order,
                   std::optional<ScalarType> out_dtype, bool channels_last, bool /*allow_tf32*/) {
  const ScalarType dtype = out_dtype.value_or(ScalarType::Float);
  STD_TORCH_CHECK(is_floating(dtype), "corr_lookup: out_dtype must be a floating dtype");
  const Arguments args = check_arguments("corr_lookup", fmap1, fmap2_pyramid, coords, radius, scale, order);
  const CorrLookup& op = args.op;
  const Tensor out = torch::stable::new_empty(fmap1, args.shape(coords, op.num_levels * op.window()), dtype);
  if (out.numel() == 0) return out;
  advise_huge_pages(out);
  const CorrLookupOutput output{out.data_ptr(), element_of(dtype)};
  const auto kernel = DAFLOW_SELECT_ISA(corr_lookup_rows);
  parallel_rows(args.rows() * op.centres, args.multiplications_per_row(), DAFLOW_SELECT_ISA(corr_lookup_scratch)(op),
                [&](int64_t begin, int64_t end, void* scratch) { kernel(op, output, begin, end, scratch); });
  return channels_last ? channels_to_last(out) : out;
}

// Sorts the queries of a level by cell, in query order within a cell: cell_of -> cell_begin, entry_of, entries.
void sort_by_cell(CorrLookupScatter& scatter, std::vector<int64_t>& cell_begin, int64_t queries) {
  std::fill(cell_begin.begin(), cell_begin.end(), 0);
  for (int64_t query = 0; query < queries; ++query)
    if (scatter.cell_of[query] >= 0) ++cell_begin[scatter.cell_of[query] + 1];
  for (size_t cell = 1; cell < cell_begin.size(); ++cell) cell_begin[cell] += cell_begin[cell - 1];
  scatter.entries = cell_begin.back();
  std::vector<int64_t> next(cell_begin.begin(), cell_begin.end() - 1);
  for (int64_t query = 0; query < queries; ++query)
    if (scatter.cell_of[query] >= 0) scatter.entry_of[query] = next[scatter.cell_of[query]]++;
}

// The gradient of one level, all of it.
void level_grad(const Arguments& args, const QueryTensor& grad, int level, const Tensor& grad_level) {
  const CorrLookup& op = args.op;
  const FeatureMap& map = op.levels[level];
  const int64_t query_rows = op.centres * op.fmap1.height, queries = query_rows * op.fmap1.width;
  CorrLookupScatter scatter{};
  scatter.grad = grad;
  scatter.level = level;
  scatter.cells_y = map.height + op.window_y();
  scatter.cells_x = map.width + op.window_x();
  scatter.grad_level = grad_level.data_ptr();
  std::vector<int64_t> cell_begin(scatter.cells_y * scatter.cells_x + 1), cell_of(queries), entry_of(queries),
      offset(queries);
  std::vector<int> first_x(queries);
  scatter.cell_begin = cell_begin.data();
  scatter.cell_of = cell_of.data();
  scatter.entry_of = entry_of.data();
  scatter.query_offset = offset.data();
  scatter.first_x = first_x.data();
  const int64_t weights_per_query = (op.window_y() + 1) * (op.window_x() + 3);
  const Tensor weight =
      torch::stable::new_empty(args.fmap1, {queries * weights_per_query}, accumulate_dtype(args.fmap1));
  scatter.weight = weight.data_ptr();
  const auto cells = DAFLOW_SELECT_ISA(corr_lookup_cells);
  const auto weights = DAFLOW_SELECT_ISA(corr_lookup_weights);
  const auto gather = DAFLOW_SELECT_ISA(corr_lookup_gather);
  const int64_t scratch_bytes = DAFLOW_SELECT_ISA(corr_lookup_backward_scratch)(op);
  const int64_t tiles = (map.width + kScatterTile - 1) / kScatterTile;
  const int64_t gather_work = args.multiplications_per_row() / op.num_levels * query_rows / (map.height * tiles);
  for (int64_t b = 0; b < op.batch; ++b) {
    scatter.batch_item = b;
    parallel_rows(query_rows, op.fmap1.width * 8, 0,
                  [&](int64_t begin, int64_t end, void*) { cells(op, scatter, begin, end); });
    sort_by_cell(scatter, cell_begin, queries);
    parallel_rows(query_rows, op.fmap1.width * weights_per_query, scratch_bytes,
                  [&](int64_t begin, int64_t end, void* scratch) { weights(op, scatter, begin, end, scratch); });
    parallel_rows(map.height * tiles, gather_work, scratch_bytes,
                  [&](int64_t begin, int64_t end, void* scratch) { gather(op, scatter, begin, end, scratch); });
  }
}

// Always deterministic: whoever computes a sum, its terms come in one order.
std::vector<Tensor> corr_lookup_backward(const Tensor& grad, const Tensor& fmap1,
                                         const std::vector<Tensor>& fmap2_pyramid, const Tensor& coords,
                                         const std::vector<int64_t>& radius, std::optional<double> scale,
                                         const std::string& order, bool need_fmap1, bool need_pyramid, bool need_coords,
                                         bool /*deterministic*/, bool /*allow_tf32*/) {
  const char* const name = "corr_lookup_backward";
  Arguments args = check_arguments(name, fmap1, fmap2_pyramid, coords, radius, scale, order);
  args.fmap1 = channels_last(fmap1);
  args.op.fmap1 = feature_map(args.fmap1);
  const CorrLookup& op = args.op;
  const std::vector<int64_t> expected = args.shape(coords, op.num_levels * op.window());
  STD_TORCH_CHECK(std::equal(expected.begin(), expected.end(), grad.sizes().begin(), grad.sizes().end()) &&
                      is_floating(grad.scalar_type()) && grad.is_cpu(),
                  name, ": grad must be floating and of the shape of the output, got ", spell(grad));
  const QueryTensor upstream = query_tensor(grad);
  const FeatureMap& map1 = op.fmap1;
  std::vector<Tensor> grads;
  grads.push_back(need_fmap1 ? empty_channels_last(fmap1, op.batch, op.channels, map1.height, map1.width)
                             : torch::stable::new_empty(fmap1, {0}));
  grads.push_back(need_coords ? torch::stable::new_empty(coords, coords.sizes())
                              : torch::stable::new_empty(coords, {0}));
  if (need_fmap1 || need_coords) {
    const CorrLookupQueryGrads query_grads{upstream, need_fmap1 ? grads[0].data_ptr() : nullptr,
                                           need_coords ? grads[1].data_ptr() : nullptr};
    const auto kernel = DAFLOW_SELECT_ISA(corr_lookup_query_grads);
    parallel_rows(args.rows(), args.multiplications_per_row() * op.centres,
                  DAFLOW_SELECT_ISA(corr_lookup_backward_scratch)(op),
                  [&](int64_t begin, int64_t end, void* scratch) { kernel(op, query_grads, begin, end, scratch); });
  }
  for (int level = 0; need_pyramid && level < op.num_levels; ++level) {
    const FeatureMap& map = op.levels[level];
    grads.push_back(empty_channels_last(fmap1, op.batch, op.channels, map.height, map.width));
    if (grads.back().numel() > 0) level_grad(args, upstream, level, grads.back());
  }
  return grads;
}

}  // namespace
}  // namespace daflow

STABLE_TORCH_LIBRARY_IMPL(daflow_ext, CPU, m) {
  m.impl("corr_lookup", TORCH_BOX(&daflow::corr_lookup));
  m.impl("corr_lookup_backward", TORCH_BOX(&daflow::corr_lookup_backward));
}
