#include "dist/data_parallel.h"

#include <fmt/format.h>

#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

struct Bucket {
  Tensor gradients{};  // flat
  std::int64_t num_parameters = 0;
  std::int64_t num_complete = 0;
  Work work{};
};

struct Place {
  Tensor parameter;
  std::size_t bucket;
  std::int64_t offset;
  std::string name;
  Tensor gradient{};      // the view of the bucket that is the parameter's gradient
  bool complete = false;  // in the pass that reduces
};

}  // namespace

struct DataParallel::State {
  explicit State(Communicator& communicator) : group(communicator) {}

  Communicator& group;
  std::vector<Bucket> buckets;
  std::vector<Place> places;
  std::size_t num_started = 0;
  bool reducing = false;

  // Gradients may be dropped or replaced between passes: an optimizer's zero_grad drops those that fill a
  // storage of their own, as in a bucket of one parameter. What is there then is moved into the bucket; it
  // would not be reduced otherwise.
  static void attach(Place& place) {
    const Tensor current = place.parameter.grad();
    if (!current.defined()) {
      place.gradient.zero();
    } else if (current.view().data == place.gradient.view().data) {
      return;
    } else {
      place.gradient.copy_from(current);
    }
    place.parameter.set_grad(place.gradient);
  }

  void attach_all() {
    const NoGrad no_grad;
    for (Place& place : places) {
      if (place.bucket >= num_started) attach(place);
    }
  }

  void gradient_is_complete(std::size_t index) {
    if (!reducing) return;
    Place& place = places[index];
    if (place.complete) {
      throw AutogradError(
          fmt::format("DataParallel: the gradient of '{}' was complete, and may be on its way to the other "
                      "ranks, when another "
                      "backward pass added to it; call wait() between, or reduce_in_next_backward(true) "
                      "before the last pass only",
                      place.name));
    }
    attach(place);
    place.complete = true;
    ++buckets[place.bucket].num_complete;
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
    attach_all();
    while (num_started < buckets.size()) start_next();
    for (Bucket& bucket : buckets) bucket.work.wait();
    num_started = 0;
    reducing = false;
  }

  // Also forgets what a pass that ended with an exception had counted.
  void announce(bool reduce) {
    if (num_started > 0) {
      throw AutogradError(
          "DataParallel: reduce_in_next_backward() was called while gradients are on their way to the other "
          "ranks; "
          "call wait() first");
    }
    attach_all();
    for (Bucket& bucket : buckets) bucket.num_complete = 0;
    for (Place& place : places) place.complete = false;
    reducing = reduce && !buckets.empty();
  }
};

DataParallel::DataParallel(const NamedTensors& parameters, Communicator& group,
                           const DataParallelOptions& options)
    : state_(std::make_shared<State>(group)) {
  if (group.size() == 1) return;
  // First which parameter goes where, then one buffer for each bucket, then the views.
  std::vector<Place>& places = state_->places;
  std::vector<std::int64_t> sizes;
  std::vector<DType> dtypes;
  for (auto it = parameters.rbegin(); it != parameters.rend(); ++it) {
    const Tensor& parameter = it->second;
    if (!parameter.requires_grad()) continue;
    const DType dtype = gradient_dtype(parameter);
    const std::int64_t bytes_so_far =
        sizes.empty() ? 0 : sizes.back() * static_cast<std::int64_t>(size_bytes(dtype));
    if (sizes.empty() || dtypes.back() != dtype || bytes_so_far >= options.bucket_bytes) {
      sizes.push_back(0);
      dtypes.push_back(dtype);
    }
    places.push_back({parameter, sizes.size() - 1, sizes.back(), it->first});
    sizes.back() += parameter.num_elements();
  }
  const CategoryScope category(MemoryCategory::kGradient);
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    Bucket bucket;
    bucket.gradients = zeros({sizes[i]}, {.dtype = dtypes[i], .device = places.front().parameter.device()});
    state_->buckets.push_back(std::move(bucket));
  }
  for (std::size_t i = 0; i < places.size(); ++i) {
    Place& place = places[i];
    Bucket& bucket = state_->buckets[place.bucket];
    ++bucket.num_parameters;
    const Shape& shape = place.parameter.shape();
    place.gradient = bucket.gradients.as_strided(shape, contiguous_strides(shape), place.offset);
    State::attach(place);
    register_accumulated_hook(place.parameter, [state = std::weak_ptr<State>(state_), i](const Tensor&) {
      if (const auto alive = state.lock()) alive->gradient_is_complete(i);
    });
  }
}

DataParallel::~DataParallel() = default;

void DataParallel::reduce_in_next_backward(bool reduce) { state_->announce(reduce); }

void DataParallel::wait() { state_->wait(); }

std::size_t DataParallel::num_buckets() const noexcept { return state_->buckets.size(); }

}  // namespace tessera::dist
