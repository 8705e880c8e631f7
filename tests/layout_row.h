#pragma once

// A layout in a row of a table, as tests and benchmarks write it: "dp=2,tp=2 zero=3 recompute=full Lion".

#include <functional>
#include <string>

#include "dist/config.h"

namespace tessera::dist {

/// Takes a word that is none of a layout ("threads=2" is "threads" and "2", "fast" is "fast" and "") and says
/// whether it knows it.
using OtherWord = std::function<bool(const std::string& key, const std::string& value)>;

/// `config` with what the row says:
///
///   dp=2,tp=2                         the mesh
///   zero=3  mics=2  hpz=2             ZeRO; the last two mean stage 3
///   full-gradients  persist=8  reuse=8
///   sp  ulysses                       sequence parallelism; how cp cuts attention
///   schedule=zb-v  chunks=2  uniform  the pipeline
///   recompute=full  checkpoints=2  partitioned  on-host
///   pass=2                            samples of a micro-batch
///   f64  f32  bf16  f16  scale=2^14   types
///   bf16-state                        bf16, and so the optimizer's state
///   invariant  fast                   numerics
///   AdamW  SGD  Muon  ...             the optimizer; SGD and Muon with momentum 0.9
///
/// `other` is asked first.
///
/// Errors   ConfigError for a word that nobody knows.
[[nodiscard]] Config read_layout(const std::string& row, Config config = {},
                                 const OtherWord& other = nullptr);

}  // namespace tessera::dist
