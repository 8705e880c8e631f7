// Schedules from DeepSpeed's configuration keys.

#include <fmt/format.h>

#include <cmath>
#include <set>

#include "kernels/error.h"
#include "optim/schedule.h"

namespace tessera::optim {
namespace {

// Reads parameters by name, and remembers which names it was asked for.
class Params {
 public:
  Params(const std::string& type, const std::map<std::string, double>& values)
      : type_(type), values_(values) {}

  double number(const char* key, double otherwise) {
    known_.insert(key);
    const auto found = values_.find(key);
    return found == values_.end() ? otherwise : found->second;
  }

  // A whole number of steps, at least `least`.
  std::int64_t count(const char* key, std::int64_t otherwise, std::int64_t least = 1) {
    const double value = number(key, static_cast<double>(otherwise));
    if (!(value >= static_cast<double>(least)) || value != std::floor(value) || value > 1e15) {
      throw ConfigError(fmt::format("scheduler {}: {} must be a whole number of at least {}, got {}", type_,
                                    key, least, value));
    }
    return static_cast<std::int64_t>(value);
  }

  std::int64_t required_count(const char* key) {
    if (!values_.contains(key)) throw ConfigError(fmt::format("scheduler {}: {} is missing", type_, key));
    return count(key, 1);
  }

  bool flag(const char* key, bool otherwise) { return number(key, otherwise ? 1.0 : 0.0) != 0.0; }

  void refuse_unknown() const {
    for (const auto& [key, value] : values_) {
      if (!known_.contains(key)) {
        throw ConfigError(fmt::format("scheduler {}: unknown parameter {}; it has: {}", type_, key,
                                      fmt::join(known_, ", ")));
      }
    }
  }

 private:
  const std::string& type_;
  const std::map<std::string, double>& values_;
  std::set<std::string> known_;
};

WarmupType parse_warmup_type(std::string_view text) {
  if (text == "log") return WarmupType::kLog;
  if (text == "linear") return WarmupType::kLinear;
  throw ConfigError(fmt::format("scheduler: warmup_type must be log or linear, got {}", text));
}

// A decay of no length would be a jump, and a cosine over it a division by zero.
void check_total(const std::string& type, std::int64_t total, std::int64_t warmup) {
  if (total <= warmup) {
    throw ConfigError(fmt::format("scheduler {}: total_num_steps ({}) must be above warmup_num_steps ({})",
                                  type, total, warmup));
  }
}

LRRangeTest range_test(Params& params) {
  const LRRangeTest d;
  return {.lr_range_test_min_lr = params.number("lr_range_test_min_lr", d.lr_range_test_min_lr),
          .lr_range_test_step_size = params.count("lr_range_test_step_size", d.lr_range_test_step_size),
          .lr_range_test_step_rate = params.number("lr_range_test_step_rate", d.lr_range_test_step_rate),
          .lr_range_test_staircase = params.flag("lr_range_test_staircase", d.lr_range_test_staircase)};
}

OneCycle one_cycle(Params& params) {
  const OneCycle d;
  OneCycle s{.cycle_min_lr = params.number("cycle_min_lr", d.cycle_min_lr),
             .cycle_max_lr = params.number("cycle_max_lr", d.cycle_max_lr),
             .decay_lr_rate = params.number("decay_lr_rate", d.decay_lr_rate),
             .cycle_first_step_size = params.count("cycle_first_step_size", d.cycle_first_step_size),
             .decay_step_size = params.count("decay_step_size", d.decay_step_size, 0),
             .cycle_momentum = params.flag("cycle_momentum", d.cycle_momentum),
             .cycle_min_mom = params.number("cycle_min_mom", d.cycle_min_mom),
             .cycle_max_mom = params.number("cycle_max_mom", d.cycle_max_mom),
             .decay_mom_rate = params.number("decay_mom_rate", d.decay_mom_rate)};
  s.cycle_second_step_size = params.count("cycle_second_step_size", s.cycle_first_step_size);
  for (const char* key : {"cycle_first_stair_count", "cycle_second_stair_count"}) {
    if (params.number(key, 0.0) != 0.0) {
      throw ConfigError(
          fmt::format("scheduler OneCycle: {} is not supported (DeepSpeed ignores it); leave it out", key));
    }
  }
  return s;
}

}  // namespace

Schedule make_schedule(const std::string& type, const std::map<std::string, double>& values,
                       std::string_view warmup_type, double base_lr) {
  Params params(type, values);
  Schedule schedule;
  if (type == "LRRangeTest") {
    schedule = range_test(params);
  } else if (type == "OneCycle") {
    schedule = one_cycle(params);
  } else if (type == "WarmupLR") {
    const WarmupLR d;
    schedule = WarmupLR{.warmup_min_lr = params.number("warmup_min_lr", d.warmup_min_lr),
                        .warmup_max_lr = params.number("warmup_max_lr", base_lr),
                        .warmup_num_steps = params.count("warmup_num_steps", d.warmup_num_steps),
                        .warmup_type = parse_warmup_type(warmup_type)};
  } else if (type == "WarmupDecayLR") {
    const WarmupDecayLR d;
    const WarmupDecayLR s{.total_num_steps = params.required_count("total_num_steps"),
                          .warmup_min_lr = params.number("warmup_min_lr", d.warmup_min_lr),
                          .warmup_max_lr = params.number("warmup_max_lr", d.warmup_max_lr),
                          .warmup_num_steps = params.count("warmup_num_steps", d.warmup_num_steps),
                          .warmup_type = parse_warmup_type(warmup_type)};
    check_total(type, s.total_num_steps, s.warmup_num_steps);
    schedule = s;
  } else if (type == "WarmupCosineLR") {
    const WarmupCosineLR d;
    const WarmupCosineLR s{.base_lr = base_lr,
                           .total_num_steps = params.required_count("total_num_steps"),
                           .warmup_min_ratio = params.number("warmup_min_ratio", d.warmup_min_ratio),
                           .warmup_num_steps = params.count("warmup_num_steps", d.warmup_num_steps),
                           .cos_min_ratio = params.number("cos_min_ratio", d.cos_min_ratio),
                           .warmup_type = parse_warmup_type(warmup_type)};
    check_total(type, s.total_num_steps, s.warmup_num_steps);
    schedule = s;
  } else {
    throw ConfigError(
        fmt::format("scheduler: unknown type {}; there are LRRangeTest, OneCycle, WarmupLR, "
                    "WarmupDecayLR and WarmupCosineLR",
                    type));
  }
  params.refuse_unknown();
  return schedule;
}

}  // namespace tessera::optim
