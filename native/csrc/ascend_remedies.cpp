#include <algorithm>
#include <iterator>

#include "remedies.h"

namespace vnpu {

namespace {

constexpr const char* out_of_memory =
    "other processes hold the device's memory (npu-smi info); end them, or lower this device's capacity";
constexpr const char* lost =
    "the device has failed for this process: end it and start again; if it fails again, reset the device "
    "(npu-smi set -t reset) and see /var/log/npu/slog";
constexpr const char* unmapped =
    "a kernel failed, most likely on memory that is not mapped; the process cannot use the device any more: end it";
constexpr const char* streams =
    "the device's streams are used up: capture fewer graph sizes (cudagraph_capture_sizes) or use --enforce-eager, and "
    "put fewer engines on the device; docs/ascend.md has the budget";
constexpr const char* events = "the device's events are used up: put fewer engines on the device";
constexpr const char* bug = "a mistake of vNPU's: report it with this message";
constexpr const char* unsupported =
    "this device, its virtualisation (vNPU instances, compute groups) or this CANN cannot do it: use a whole device, "
    "and CANN 8.1 or later";
constexpr const char* arguments =
    "see that addresses and sizes are multiples of the driver's granularity and that what is passed is still there";
constexpr const char* handle =
    "see that the handle's owner has not ended, that this process is on its white-list, and that it was not imported "
    "already";

// acl/error_codes/rt_error_codes.h and acl/acl_base_rt.h, by code.
constexpr Remedy table[] = {
    {100000, "ACL_ERROR_INVALID_PARAM", arguments},
    {100001, "ACL_ERROR_UNINITIALIZE", bug},
    {100037, "ACL_ERROR_REPEAT_FINALIZE", "somebody called aclFinalize: use no driver afterwards"},
    {100039, "ACL_ERROR_COMPILING_STUB_MODE", "the toolkit's stub was opened: source set_env.sh, so that the runtime's "
                                              "libascendcl.so comes first in LD_LIBRARY_PATH"},
    {107000, "ACL_ERROR_RT_PARAM_INVALID", arguments},
    {107001, "ACL_ERROR_RT_INVALID_DEVICEID", "number devices from 0 among those of ASCEND_RT_VISIBLE_DEVICES"},
    {107002, "ACL_ERROR_RT_CONTEXT_NULL", bug},
    {107003, "ACL_ERROR_RT_STREAM_CONTEXT", bug},
    {107008, "ACL_ERROR_RT_ADDR_UNALIGNED", arguments},
    {107016, "ACL_ERROR_RT_INVALID_MEMORY_TYPE", bug},
    {107017, "ACL_ERROR_RT_INVALID_HANDLE", handle},
    {107019, "ACL_ERROR_RT_WAIT_TIMEOUT", "see whether the device hangs: npu-smi info"},
    {107022, "ACL_ERROR_RT_DEVICE_TASK_ABORT", lost},
    {107027, "ACL_ERROR_RT_STREAM_CAPTURED", "do not move memory while a graph is captured"},
    {107030, "ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT", "do not move memory while a graph is captured"},
    {200000, "ACL_ERROR_BAD_ALLOC", "the host is out of memory: free some"},
    {200001, "ACL_ERROR_API_NOT_SUPPORT", unsupported},
    {200006, "ACL_ERROR_FEATURE_UNSUPPORTED", unsupported},
    {207000, "ACL_ERROR_RT_FEATURE_NOT_SUPPORT", unsupported},
    {207001, "ACL_ERROR_RT_MEMORY_ALLOCATION", out_of_memory},
    {207002, "ACL_ERROR_RT_MEMORY_FREE", bug},
    {207004, "ACL_ERROR_RT_NO_DEVICE", "give the process a device: ASCEND_RT_VISIBLE_DEVICES, /dev/davinci*"},
    {207005, "ACL_ERROR_RT_RESOURCE_ALLOC_FAIL", "a resource of the device is used up: put fewer engines on it; "
                                                 "docs/ascend.md lists them"},
    {207006, "ACL_ERROR_RT_NO_PERMISSION", "let the process use /dev/davinci*, and permit it before it imports"},
    {207007, "ACL_ERROR_RT_NO_EVENT_RESOURCE", events},
    {207008, "ACL_ERROR_RT_NO_STREAM_RESOURCE", streams},
    {207012, "ACL_ERROR_RT_OVER_LIMIT", "a limit of the device is reached: put fewer engines on it"},
    {207018, "ACL_ERROR_RT_DEVICE_OOM", out_of_memory},
    {507000, "ACL_ERROR_RT_INTERNAL_ERROR", lost},
    {507010, "ACL_ERROR_RT_LOST_HEARTBEAT", lost},
    {507013, "ACL_ERROR_RT_SYS_DMA", lost},
    {507015, "ACL_ERROR_RT_AICORE_EXCEPTION", unmapped},
    {507022, "ACL_ERROR_RT_IPC_ERROR", handle},
    {507033, "ACL_ERROR_RT_DEV_SETUP_ERROR", "see that the driver and firmware fit this CANN: npu-smi info"},
    {507035, "ACL_ERROR_RT_VECTOR_CORE_EXCEPTION", unmapped},
    {507052, "ACL_ERROR_RT_COPY_DATA", lost},
    {507053, "ACL_ERROR_RT_DEVICE_MEM_ERROR", lost},
    {507054, "ACL_ERROR_RT_HBM_MULTI_BIT_ECC_ERROR", lost},
    {507899, "ACL_ERROR_RT_DRV_INTERNAL_ERROR", "the kernel driver refused: in an import, see that the owner lives and "
                                                "has permitted this process; else see /var/log/npu/slog"},
    {507901, "ACL_ERROR_RT_SOCKET_CLOSE", lost},
};

// What aclGetRecentErrMsg begins its lines with. EL0009 is what running out of streams reads as in vllm-ascend's logs.
constexpr Remedy messages[] = {
    {0, "EL0004", out_of_memory},
    {0, "EL0009", streams},
};

}  // namespace

const Remedy* ascend_remedy(std::int64_t code) {
    const auto* const found = std::find_if(std::begin(table), std::end(table),
                                           [code](const Remedy& each) { return each.code == code; });
    return found == std::end(table) ? nullptr : found;
}

const Remedy* ascend_message_remedy(const std::string& text) {
    const auto* const found =
        std::find_if(std::begin(messages), std::end(messages),
                     [&text](const Remedy& each) { return text.find(each.name) != std::string::npos; });
    return found == std::end(messages) ? nullptr : found;
}

}  // namespace vnpu
