#include "error.h"

#include <cstring>
#include <utility>

namespace vnpu {

namespace {

std::string describe(const std::string& call, std::int64_t code, const std::string& name, const std::string& message,
                     const std::string& remedy) {
    return call + ": " + message + " [" + name + " " + std::to_string(code) + "] (" + remedy + ")";
}

}  // namespace

DriverError::DriverError(std::string call_, std::int64_t code_, std::string name_, const std::string& message,
                         std::string remedy_)
    : std::runtime_error(describe(call_, code_, name_, message, remedy_)),
      call(std::move(call_)),
      code(code_),
      name(std::move(name_)),
      remedy(std::move(remedy_)) {}

DriverError errno_error(std::string call, int error, const std::string& message, std::string remedy) {
    const char* known = strerrorname_np(error);
    return {std::move(call), error, known != nullptr ? known : "unknown", message, std::move(remedy)};
}

}  // namespace vnpu
