#pragma once

#include <gtest/gtest.h>

#include <initializer_list>
#include <string>

namespace tessera {

/// Expects `run` to throw an E whose message holds every one of `parts`.
template <class E, class F>
void expect_error(F&& run, std::initializer_list<std::string> parts) {
  try {
    run();
    ADD_FAILURE() << "no error; expected one with: " << *parts.begin();
  } catch (const E& error) {
    const std::string message = error.what();
    for (const std::string& part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << message << "\ndoes not hold: " << part;
  }
}

}  // namespace tessera
