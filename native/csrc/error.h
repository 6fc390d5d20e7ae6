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

// Does it, unless it is refused. For endings, and for the way back from a failure.
template <class F>
bool attempt(F&& call) noexcept {
    try {
        call();
        return true;
    } catch (const DriverError&) {
        return false;
    }
}

// The same, and once more where it was refused: for what leaves something behind that nobody else can remove.
template <class F>
bool insist(F&& call) noexcept {
    return attempt(call) || attempt(call);
}

}  // namespace vnpu
