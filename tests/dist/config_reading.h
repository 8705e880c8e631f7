#pragma once

// What the tests of settings share.

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "dist/config.h"
#include "kernels/error.h"

namespace tessera::dist {

inline Config read(const std::string& json) {
  ConfigFile file = ConfigFile::parse(json, "config.json");
  Config config = Config::read(file);
  file.refuse_unknown();
  return config;
}

inline std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.exit_code(), 2);
    return error.what();
  }
  ADD_FAILURE() << "no ConfigError";
  return {};
}

inline std::string error_of(const std::string& json) {
  SCOPED_TRACE(json);
  return error_of([&] { static_cast<void>(read(json)); });
}

inline void expect_parts(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
}

}  // namespace tessera::dist
