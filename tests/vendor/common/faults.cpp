#include "faults.h"

#include <cstdlib>
#include <cstring>
#include <mutex>

namespace simulator {

namespace {

struct Order {
    std::string call;
    std::uint64_t left = 0;
    int code = 0;
};

std::mutex mutex;
std::uint64_t calls = 0;

Order from_environment() {
    const char* const text = std::getenv("SIMULATED_FAIL");
    if (text == nullptr || *text == 0) {
        return {};
    }
    const std::string order = text;
    const auto first = order.find(':');
    const auto second = order.find(':', first + 1);
    const std::string call = order.substr(0, first);
    return {call == "*" ? "" : call, std::strtoull(order.c_str() + first + 1, nullptr, 10),
            std::atoi(order.c_str() + second + 1)};
}

Order& order() {
    static Order one = from_environment();
    return one;
}

}  // namespace

bool ordered_to_fail(const char* call, int* code) {
    const std::lock_guard lock(mutex);
    calls += 1;
    Order& now = order();
    if (now.left == 0 || (!now.call.empty() && now.call != call)) {
        return false;
    }
    now.left -= 1;
    *code = now.code;
    return now.left == 0;
}

}  // namespace simulator

void simulator_fail(const char* call, std::uint64_t nth, int code) {
    const std::lock_guard lock(simulator::mutex);
    simulator::order() = {call, nth, code};
}

std::uint64_t simulator_calls() {
    const std::lock_guard lock(simulator::mutex);
    return simulator::calls;
}
