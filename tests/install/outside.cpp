#include <tessera/tessera.h>

#include <iostream>

int main(int argc, char** argv) {
  return tessera::dist::run(argc, argv, [](tessera::dist::Job& job) {
    tessera::Tensor x = tessera::full({2}, job.rank() + 1.0).set_requires_grad();
    tessera::sum(x * x).backward();
    job.world().all_reduce({x.grad().mutable_data<float>(), 2, tessera::DType::kF32});
    if (job.is_root()) std::cout << job.size() << " ranks: " << x.grad() << "\n";
  });
}
