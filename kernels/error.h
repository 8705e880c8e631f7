#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace tessera {

/// Base of every exception that Tessera throws.
///
/// The message says what was expected, what came and what to do; `where()` is the place in Tessera's source
/// (or in the caller's, where an operation passes its caller on) that noticed.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, std::source_location where = std::source_location::current())
      : std::runtime_error(message), where_(where) {}

  [[nodiscard]] const std::source_location& where() const noexcept { return where_; }

  /// The exit status that a program should end with: 2 for a mistake of its user's, 1 for any other failure.
  [[nodiscard]] virtual int exit_code() const noexcept { return 1; }

 private:
  std::source_location where_;
};

/// Shapes, dimensions or sizes that do not fit together.
class ShapeError : public Error {
  using Error::Error;
};

/// Element types that do not fit together, or that an operation does not take.
class DTypeError : public Error {
  using Error::Error;
};

/// Devices that do not fit together, or data asked of a device that has none (`meta`).
class DeviceError : public Error {
  using Error::Error;
};

/// Tensors whose layouts over the ranks of a mesh do not fit an operation: a partial sum in front of a
/// non-linear one, a missing collective. Names the operation, the layouts, and what is missing.
class LayoutError : public Error {
  using Error::Error;
};

/// An index outside its range: an element, a token id, a class label.
class IndexError : public Error {
  using Error::Error;
};

/// Data asked of a storage that has been dropped, or memory that could not be had.
class StorageError : public Error {
  using Error::Error;
};

/// A backward pass that cannot run: freed graph, changed saved value, no gradient wanted.
class AutogradError : public Error {
  using Error::Error;
};

/// A value that is not finite (a NaN loss, an infinite gradient); names the tensor.
class NonFiniteError : public Error {
  using Error::Error;
};

/// A collective that failed: mismatched calls, a lost or silent peer. Carries rank, group, sequence and call
/// site.
class CommError : public Error {
  using Error::Error;
};

/// A file that could not be read or written for a reason outside the program: disk full, I/O error.
class FileError : public Error {
  using Error::Error;
};

/// A user's mistake: a bad option, configuration, data file or checkpoint. Programs exit with status 2.
class UserError : public Error {
 public:
  using Error::Error;
  [[nodiscard]] int exit_code() const noexcept override { return 2; }
};

/// A configuration or option that cannot be honoured.
class ConfigError : public UserError {
  using UserError::UserError;
};

/// Input data that cannot be used: empty text, a truncated token file, another vocabulary.
class DataError : public UserError {
  using UserError::UserError;
};

}  // namespace tessera
