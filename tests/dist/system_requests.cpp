#include "tests/dist/system_requests.h"

#include <atomic>

#if defined(__linux__) && defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)

#include <fmt/format.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstring>

// Makes a system call from a place that the filter knows: what comes from there passes.
//   long tessera_call_kernel(long number, const long arguments[6])
extern "C" long tessera_call_kernel(long number, const long* arguments);
extern "C" const char tessera_kernel_returns_here;
asm(R"(
  .text
  .type tessera_call_kernel, @function
tessera_call_kernel:
  mov %rdi, %rax
  mov %rsi, %r11
  mov 0(%r11), %rdi
  mov 8(%r11), %rsi
  mov 16(%r11), %rdx
  mov 24(%r11), %r10
  mov 32(%r11), %r8
  mov 40(%r11), %r9
  syscall
tessera_kernel_returns_here:
  ret
  .size tessera_call_kernel, . - tessera_call_kernel
)");

namespace tessera::testing {
namespace {

std::atomic<std::int64_t> num_requests{0}, num_bytes{0};

void count_and_call(int /*signal*/, siginfo_t* /*info*/, void* context) {
  const int saved = errno;
  num_requests.fetch_add(1, std::memory_order_relaxed);
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const long arguments[6] = {registers[REG_RDI], registers[REG_RSI], registers[REG_RDX],
                             registers[REG_R10], registers[REG_R8],  registers[REG_R9]};
  const long number = registers[REG_RAX];
  num_bytes.fetch_add(number == SYS_brk ? 128 << 10 : arguments[number == SYS_mremap ? 2 : 1]);
  registers[REG_RAX] = tessera_call_kernel(number, arguments);
  errno = saved;
}

std::string error_text(const char* call) { return fmt::format("{}: {}", call, std::strerror(errno)); }

std::string install() {
  struct sigaction action {};
  action.sa_sigaction = count_and_call;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  if (sigaction(SIGSYS, &action, nullptr) != 0) return error_text("sigaction");

  const auto back = reinterpret_cast<std::uintptr_t>(&tessera_kernel_returns_here);
  const auto low = static_cast<__u32>(back), high = static_cast<__u32>(back >> 32);
  constexpr auto load = [](std::size_t offset) {
    return sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<__u32>(offset));
  };
  // Jumps count instructions after the next one.
  constexpr auto equals = [](__u32 value, __u8 then, __u8 otherwise) {
    return sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, then, otherwise);
  };
  constexpr std::size_t kPointer = offsetof(seccomp_data, instruction_pointer);
  std::array filter = {
      load(offsetof(seccomp_data, nr)),
      equals(SYS_brk, 4, 0),
      equals(SYS_mmap, 3, 0),
      equals(SYS_mremap, 2, 0),
      equals(SYS_mprotect, 1, 0),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      load(kPointer),
      equals(low, 0, 3),
      load(kPointer + 4),
      equals(high, 0, 1),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
  };
  const sock_fprog program{.len = static_cast<unsigned short>(filter.size()), .filter = filter.data()};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return error_text("prctl");
  // TSYNC: threads that are there already, too.
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0)
    return error_text("seccomp");
  return "";
}

}  // namespace

std::string count_system_requests() {
  static const std::string error = install();
  return error;
}

std::int64_t num_system_requests() noexcept { return num_requests.load(); }
std::int64_t system_requests_bytes() noexcept { return num_bytes.load(); }

}  // namespace tessera::testing

#else

namespace tessera::testing {

std::string count_system_requests() { return "counted on x86-64 Linux alone, and without sanitizers"; }
std::int64_t num_system_requests() noexcept { return 0; }
std::int64_t system_requests_bytes() noexcept { return 0; }

}  // namespace tessera::testing

#endif
