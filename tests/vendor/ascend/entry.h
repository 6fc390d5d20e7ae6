// A simulator of Huawei's libascendcl.so, for tests: the functions that a driver of device memory needs, with the
// vendor's binary interface (compiled against the vendor's own headers) and rules. Where a rule is written is said at
// it: "11-04" is docs/zh/api_ref/11-04_virtual_memory_management.md of the CANN runtime's sources (hicann/runtime), the
// same text as the pages of www.hiascend.com/document under "runtimeapi" (aclrtMapMem: aclcppdevg_03_0116); likewise
// "02", "04", "06", "07", "11-02", "11-03". Where a page says "fails" without a code, the code here is
// ACL_ERROR_RT_DRV_INTERNAL_ERROR, to which the runtime translates what the kernel driver refuses.
#pragma once

#include <atomic>
#include <string>

#include "acl/acl.h"
#include "books.h"

namespace ascend {

using simulator::Fault;
using simulator::Process;
using simulator::refuse;
using simulator::Result;

extern std::atomic<bool> initialised;
extern thread_local int current_device;    // -1: aclrtSetDevice was not called in this thread
extern thread_local std::string message;  // for aclGetRecentErrMsg

aclError say(aclError code, const char* why);
aclError answer(const Result& result);
bool known_device(Process& self, int device);

inline std::uint64_t number(const void* handle) { return reinterpret_cast<std::uint64_t>(handle); }
inline void* handle(std::uint64_t number) { return reinterpret_cast<void*>(number); }

// Runs `work(process)` unless the call is ordered to fail or comes too early.
template <typename Work>
aclError call(const char* name, bool needs_device, Work&& work) {
    int code = 0;
    if (simulator::ordered_to_fail(name, &code)) {
        return say(code, "this call was ordered to fail");
    }
    Process* const self = simulator::process();
    if (self == nullptr) {
        return say(ACL_ERROR_RT_NO_DEVICE, "no card: SIMULATED_CARD is not set");
    }
    if (!initialised || self->card.forked()) {  // 02 aclInit: comes before anything else
        return say(ACL_ERROR_UNINITIALIZE, "aclInit was not called in this process");
    }
    if (needs_device && current_device < 0) {  // 04 aclrtSetDevice: of the thread
        return say(ACL_ERROR_RT_CONTEXT_NULL, "aclrtSetDevice was not called in this thread");
    }
    return answer(work(*self));
}

}  // namespace ascend

#define CALL(needs_device, ...) \
    return ascend::call(__func__, needs_device, [&]([[maybe_unused]] Process& self) -> Result __VA_ARGS__)
