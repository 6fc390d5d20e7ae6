#include "faults.h"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

namespace simulator {

namespace {

struct Order {
    std::string call;
    std::uint64_t left = 0;
    int code = 0;
};

std::mutex mutex;
std::uint64_t calls = 0;
std::string failed;

std::vector<Order> from_environment() {
    const char* const text = std::getenv("SIMULATED_FAIL");
    if (text == nullptr || *text == 0) {
        return {};
    }
    const std::string order = text;
    const auto first = order.find(':');
    const auto second = order.find(':', first + 1);
    const std::string call = order.substr(0, first);
    return {{call == "*" ? "" : call, std::strtoull(order.c_str() + first + 1, nullptr, 10),
             std::atoi(order.c_str() + second + 1)}};
}

std::vector<Order>& orders() {
    static std::vector<Order> all = from_environment();
    return all;
}

}  // namespace

bool ordered_to_fail(const char* call, int* code) {
    const std::lock_guard lock(mutex);
    calls += 1;
    bool fails = false;
    for (Order& order : orders()) {
        if (order.left == 0 || (!order.call.empty() && order.call != call)) {
            continue;
        }
        order.left -= 1;
        if (order.left == 0) {
            *code = order.code;
            failed = call;
            fails = true;
        }
    }
    return fails;
}

}  // namespace simulator

void simulator_fail(const char* call, std::uint64_t nth, int code) {
    const std::lock_guard lock(simulator::mutex);
    simulator::orders() = {{call, nth, code}};
    simulator::failed.clear();
}

void simulator_fail_also(const char* call, std::uint64_t nth, int code) {
    const std::lock_guard lock(simulator::mutex);
    simulator::orders().push_back({call, nth, code});
}

const char* simulator_failed() {
    const std::lock_guard lock(simulator::mutex);
    return simulator::failed.c_str();
}

std::uint64_t simulator_calls() {
    const std::lock_guard lock(simulator::mutex);
    return simulator::calls;
}
