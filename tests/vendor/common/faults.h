// What can be wrong with a call, in words that both vendors' codes are translated from; and failures made to order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace simulator {

enum class Fault {
    none,
    invalid_value,
    invalid_handle,
    out_of_memory,
    out_of_streams,
    invalid_device,
    not_permitted,   // a process that is not on the white-list
    refused_below,   // the kernel driver's own refusals, where the documents name no code
    already,         // registered already
    not_registered,
    illegal_address,
    not_supported,
    timeout,
    system,
};

struct [[nodiscard]] Result {
    Fault fault = Fault::none;
    const char* why = "";

    bool ok() const { return fault == Fault::none; }
};

inline Result refuse(Fault fault, const char* why) { return {fault, why}; }

// To be called first by every entry point that can fail: whether this call was ordered to fail, and with which code.
// An order is made by $SIMULATED_FAIL="call:nth:code" (call `*`: any) or by simulator_fail, for this process.
bool ordered_to_fail(const char* call, int* code);

}  // namespace simulator

// The controls, found with dlsym by tests only. Each simulated library has its own.
extern "C" {
// The nth call from now (1: the next) of `call` ("": of any) fails with `code` and without effect; nth 0: none does.
__attribute__((visibility("default"))) void simulator_fail(const char* call, std::uint64_t nth, int code);
// The same, beside what is ordered already.
__attribute__((visibility("default"))) void simulator_fail_also(const char* call, std::uint64_t nth, int code);
// The call that failed last by order; "" where none did since the last order.
__attribute__((visibility("default"))) const char* simulator_failed();
// Calls that could have failed, since the library was opened.
__attribute__((visibility("default"))) std::uint64_t simulator_calls();
// Nothing queued on a stream is done while held, whoever waits.
__attribute__((visibility("default"))) void simulator_hold(int held);
// The books as JSON: of the card (all processes) and of this process. Returns the length it has or would have.
__attribute__((visibility("default"))) std::size_t simulator_books(char* out, std::size_t room);
// Bytes of each device from now on.
__attribute__((visibility("default"))) void simulator_capacity(std::uint64_t bytes);
}
