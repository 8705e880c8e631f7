#include "dist/data_parallel.h"

#include "autograd/graph.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

struct Bucket {
  Tensor gradients;  // flat
  std::int64_t num_parameters = 0;
  std::int64_t num_complete = 0;
  Work work;
};

}  // namespace

struct DataParallel::State {
  explicit State(Communicator& communicator) : group(communicator) {}

  Communicator& group;
  std::vector<Bucket> buckets;
  std::size_t num_started = 0;
  bool reducing = false;

  void gradient_is_complete(std::size_t bucket) {
    if (!reducing) return;
    ++buckets[bucket].num_complete;
    while (num_started < buckets.size() &&
           buckets[num_started].num_complete == buckets[num_started].num_parameters)
      start_next();
    // Calls make progress only inside calls: give those under way a chance between two layers.
    for (std::size_t i = 0; i < num_started; ++i) static_cast<void>(buckets[i].work.test());
  }

  void start_next() {
    Bucket& bucket = buckets[num_started++];
    const kernels::View flat = bucket.gradients.mutable_view();
    bucket.work = group.all_reduce_async({flat.data, flat.num_elements(), flat.dtype});
  }

  void wait() {
    if (!reducing) return;
    while (num_started < buckets.size()) start_next();
    for (Bucket& bucket : buckets) {
      bucket.work.wait();
      bucket.num_complete = 0;
    }
    num_started = 0;
    reducing = false;
  }
};

DataParallel::DataParallel(const std::vector<std::pair<std::string, Tensor>>& parameters, Communicator& group,
                           const DataParallelOptions& options)
    : state_(std::make_shared<State>(group)) {
  if (group.size() == 1) return;
  // First which parameter goes where, then one buffer for each bucket, then the views.
  struct Place {
    Tensor parameter;
    std::size_t bucket;
    std::int64_t offset;
  };
  std::vector<Place> places;
  std::vector<std::int64_t> sizes;
  std::vector<DType> dtypes;
  for (auto it = parameters.rbegin(); it != parameters.rend(); ++it) {
    const Tensor& parameter = it->second;
    if (!parameter.requires_grad()) continue;
    const DType dtype = grad_info(parameter)->grad_dtype;
    const std::int64_t bytes_so_far =
        sizes.empty() ? 0 : sizes.back() * static_cast<std::int64_t>(size_bytes(dtype));
    if (sizes.empty() || dtypes.back() != dtype || bytes_so_far >= options.bucket_bytes) {
      sizes.push_back(0);
      dtypes.push_back(dtype);
    }
    places.push_back({parameter, sizes.size() - 1, sizes.back()});
    sizes.back() += parameter.num_elements();
  }
  const CategoryScope category(MemoryCategory::kGradient);
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    Bucket bucket;
    bucket.gradients = zeros({sizes[i]}, {.dtype = dtypes[i], .device = places.front().parameter.device()});
    state_->buckets.push_back(std::move(bucket));
  }
  for (Place& place : places) {
    Bucket& bucket = state_->buckets[place.bucket];
    ++bucket.num_parameters;
    const Shape& shape = place.parameter.shape();
    place.parameter.set_grad(bucket.gradients.as_strided(shape, contiguous_strides(shape), place.offset));
    register_accumulated_hook(place.parameter,
                              [state = std::weak_ptr<State>(state_), bucket = place.bucket](const Tensor&) {
                                if (const auto alive = state.lock()) alive->gradient_is_complete(bucket);
                              });
  }
}

DataParallel::~DataParallel() = default;

void DataParallel::reduce_in_next_backward(bool reduce) {
  state_->reducing = reduce && !state_->buckets.empty();
}

void DataParallel::wait() { state_->wait(); }

std::size_t DataParallel::num_buckets() const noexcept { return state_->buckets.size(); }

}  // namespace tessera::dist
