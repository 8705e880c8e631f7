#pragma once

#include <gtest/gtest.h>

#include <string>

namespace tessera::nn {

/// Expects `run` to throw an E whose message holds `part`.
template <class E, class F>
void expect_error(F&& run, const std::string& part) {
  try {
    run();
    ADD_FAILURE() << "no error; expected one with: " << part;
  } catch (const E& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
        << error.what() << "\ndoes not hold: " << part;
  }
}

}  // namespace tessera::nn
