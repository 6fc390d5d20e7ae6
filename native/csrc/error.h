// The one exception of drivers.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace vnpu {

// A driver refused a call or the system below it failed. The driver's state is what it was before the call.
class DriverError : public std::runtime_error {
   public:
    DriverError(std::string call, std::int64_t code, std::string name, const std::string& message, std::string remedy);

    std::string call;   // what was called, e.g. "map"
    std::int64_t code;  // an errno, or the vendor's error number
    std::string name;   // that number's name
    std::string remedy;
};

// A DriverError that carries an errno.
DriverError errno_error(std::string call, int error, const std::string& message, std::string remedy);

}  // namespace vnpu
