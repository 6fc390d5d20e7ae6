#include "entry.h"

const char* const simulator::vendor_name = "ascend";

// 11-04 aclrtMapMem (handle): no mixing; aclrtMemImportFromShareableHandle: across processes, one to one;
// aclrtReserveMemAddress (expectPtr): fails where taken. What is mapped is readable and writable without
// aclrtMemSetAccess: vllm-ascend's allocator (camem) relies on it. 11-04 aclrtMemSetAccess: address and size are those
// of the aclrtMapMem.
const simulator::Rules simulator::vendor_rules{true, true, true, true, true};

namespace ascend {

std::atomic<bool> initialised = false;
thread_local int current_device = -1;
thread_local std::string message;

namespace {

int translate(Fault fault) {
    switch (fault) {
        case Fault::none: return ACL_SUCCESS;
        case Fault::invalid_value: return ACL_ERROR_RT_PARAM_INVALID;
        case Fault::invalid_handle: return ACL_ERROR_RT_INVALID_HANDLE;
        case Fault::out_of_memory: return ACL_ERROR_RT_MEMORY_ALLOCATION;
        case Fault::out_of_streams: return ACL_ERROR_RT_NO_STREAM_RESOURCE;
        case Fault::invalid_device: return ACL_ERROR_RT_INVALID_DEVICEID;
        case Fault::not_permitted: return ACL_ERROR_RT_NO_PERMISSION;
        case Fault::already: return ACL_ERROR_RT_PARAM_INVALID;
        case Fault::not_registered: return ACL_ERROR_RT_PARAM_INVALID;
        case Fault::illegal_address: return ACL_ERROR_RT_SYS_DMA;
        case Fault::not_supported: return ACL_ERROR_RT_FEATURE_NOT_SUPPORT;
        case Fault::timeout: return ACL_ERROR_RT_STREAM_SYNC_TIMEOUT;
        case Fault::refused_below:
        case Fault::system: return ACL_ERROR_RT_DRV_INTERNAL_ERROR;
    }
    return ACL_ERROR_RT_INTERNAL_ERROR;
}

}  // namespace

aclError say(aclError code, const char* why) {
    message = "E-SIMULATOR: " + std::string(why);
    return code;
}

aclError answer(const Result& result) {
    return result.ok() ? ACL_SUCCESS : say(translate(result.fault), result.why);
}

bool known_device(Process& self, int device) {
    return self.card.locked([&](simulator::Book& book) { return device >= 0 && device < book.devices; });
}

}  // namespace ascend
