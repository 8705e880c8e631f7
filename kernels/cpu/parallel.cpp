#include "kernels/cpu/parallel.h"

#include <omp.h>

#include <algorithm>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/context.h"

#if defined(__SANITIZE_THREAD__)
#define TESSERA_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TESSERA_THREAD_SANITIZER 1
#endif
#endif

namespace tessera::kernels {
namespace {

/// Keeps the exception of the range that begins first.
class FirstError {
 public:
  void keep(std::int64_t begin) noexcept {
    const std::lock_guard lock(mutex_);
    if (error_ == nullptr || begin < begin_) {
      error_ = std::current_exception();
      begin_ = begin;
    }
  }
  void rethrow() const {
    if (error_ != nullptr) std::rethrow_exception(error_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr error_;
  std::int64_t begin_ = 0;
};

/// Calls run(member, members) once in each of up to `threads` threads.
template <class F>
void run_team(int threads, const F& run) {
#ifdef TESSERA_THREAD_SANITIZER
  // The sanitizer cannot see the barriers inside libgomp; threads of its own it can.
  std::vector<std::thread> team;
  for (int member = 1; member < threads; ++member)
    team.emplace_back([&run, member, threads] { run(member, threads); });
  run(0, threads);
  for (std::thread& thread : team) thread.join();
#else
  // OpenMP's pool is the one that oneDNN uses: a second pool would compete with it for the cores.
#pragma omp parallel num_threads(threads) default(none) shared(run)
  run(omp_get_thread_num(), omp_get_num_threads());
#endif
}

}  // namespace

void parallel_ranges(std::int64_t n, std::int64_t grain, RangeBody body, void* state) {
  if (n <= 0) return;
  grain = std::max<std::int64_t>(grain, 1);
  const int num_threads = kernel_context().num_threads;
  if (n <= grain || num_threads <= 1 || omp_in_parallel()) return body(state, 0, n);

  const std::int64_t grains = (n + grain - 1) / grain;
  const int threads = static_cast<int>(std::min<std::int64_t>(num_threads, grains));
  const std::int64_t range = (grains + threads - 1) / threads * grain;
  FirstError error;
  // A team may come out smaller than asked for: members take ranges in turn.
  run_team(threads, [&](int member, int members) {
    for (std::int64_t begin = member * range; begin < n; begin += members * range) {
      try {
        body(state, begin, std::min(begin + range, n));
      } catch (...) {
        error.keep(begin);
      }
    }
  });
  error.rethrow();
}

}  // namespace tessera::kernels
