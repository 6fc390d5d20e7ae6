#include "layouts.h"

#include "ascend_api.h"
#include "cuda_api.h"

namespace vnpu {

namespace {

using Layouts = std::vector<std::pair<std::string, std::int64_t>>;

#define VNPU_SIZE(type) {#type, static_cast<std::int64_t>(sizeof(type))}
#define VNPU_FIELD(type, field) {#type "." #field, static_cast<std::int64_t>(offsetof(type, field))}
#define VNPU_VALUE(name) {#name, static_cast<std::int64_t>(name)}

Layouts of_cuda() {
    using namespace cuda;
    return {
        VNPU_SIZE(CUmemLocation),
        VNPU_FIELD(CUmemLocation, type),
        VNPU_FIELD(CUmemLocation, id),
        VNPU_SIZE(CUmemAllocationProp),
        VNPU_FIELD(CUmemAllocationProp, type),
        VNPU_FIELD(CUmemAllocationProp, requestedHandleTypes),
        VNPU_FIELD(CUmemAllocationProp, location),
        VNPU_FIELD(CUmemAllocationProp, win32HandleMetaData),
        VNPU_FIELD(CUmemAllocationProp, allocFlags),
        VNPU_SIZE(CUmemAccessDesc),
        VNPU_FIELD(CUmemAccessDesc, location),
        VNPU_FIELD(CUmemAccessDesc, flags),
        VNPU_SIZE(CUmemGenericAllocationHandle),
        VNPU_SIZE(CUdeviceptr),
        VNPU_VALUE(CUDA_SUCCESS),
        VNPU_VALUE(CUDA_ERROR_NOT_READY),
        VNPU_VALUE(CU_MEM_ALLOCATION_TYPE_PINNED),
        VNPU_VALUE(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
        VNPU_VALUE(CU_MEM_LOCATION_TYPE_DEVICE),
        VNPU_VALUE(CU_MEM_ACCESS_FLAGS_PROT_READ),
        VNPU_VALUE(CU_MEM_ACCESS_FLAGS_PROT_READWRITE),
        VNPU_VALUE(CU_MEM_ALLOC_GRANULARITY_MINIMUM),
        VNPU_VALUE(CU_STREAM_NON_BLOCKING),
        VNPU_VALUE(CU_EVENT_DEFAULT),
        VNPU_VALUE(CU_MEMHOSTALLOC_PORTABLE),
        VNPU_VALUE(CU_MEMHOSTREGISTER_PORTABLE),
        VNPU_VALUE(CU_MEMHOSTREGISTER_READ_ONLY),
    };
}

Layouts of_ascend() {
    using namespace ascend;
    return {
        VNPU_SIZE(aclrtMemLocation),
        VNPU_FIELD(aclrtMemLocation, id),
        VNPU_FIELD(aclrtMemLocation, type),
        VNPU_SIZE(aclrtPhysicalMemProp),
        VNPU_FIELD(aclrtPhysicalMemProp, handleType),
        VNPU_FIELD(aclrtPhysicalMemProp, allocationType),
        VNPU_FIELD(aclrtPhysicalMemProp, memAttr),
        VNPU_FIELD(aclrtPhysicalMemProp, location),
        VNPU_FIELD(aclrtPhysicalMemProp, reserve),
        VNPU_SIZE(aclrtMemAccessDesc),
        VNPU_FIELD(aclrtMemAccessDesc, flags),
        VNPU_FIELD(aclrtMemAccessDesc, location),
        VNPU_FIELD(aclrtMemAccessDesc, rsv),
        VNPU_SIZE(aclrtDrvMemHandle),
        VNPU_VALUE(ACL_ERROR_REPEAT_INITIALIZE),
        VNPU_VALUE(ACL_ERROR_API_NOT_SUPPORT),
        VNPU_VALUE(ACL_ERROR_FEATURE_UNSUPPORTED),
        VNPU_VALUE(ACL_ERROR_RT_FEATURE_NOT_SUPPORT),
        VNPU_VALUE(ACL_ERROR_RT_REPEATED_INIT),
        VNPU_VALUE(ACL_ERROR_RT_STREAM_SYNC_TIMEOUT),
        VNPU_VALUE(ACL_ERROR_RT_EVENT_SYNC_TIMEOUT),
        VNPU_VALUE(ACL_MEM_HANDLE_TYPE_NONE),
        VNPU_VALUE(ACL_MEM_ALLOCATION_TYPE_PINNED),
        VNPU_VALUE(ACL_HBM_MEM),
        VNPU_VALUE(ACL_HBM_MEM_HUGE),
        VNPU_VALUE(ACL_MEM_LOCATION_TYPE_HOST),
        VNPU_VALUE(ACL_MEM_LOCATION_TYPE_DEVICE),
        VNPU_VALUE(ACL_RT_MEM_ALLOC_GRANULARITY_MINIMUM),
        VNPU_VALUE(ACL_RT_MEM_ACCESS_FLAGS_READ),
        VNPU_VALUE(ACL_RT_MEM_ACCESS_FLAGS_READWRITE),
        VNPU_VALUE(ACL_RT_VMM_EXPORT_FLAG_DEFAULT),
        VNPU_VALUE(ACL_HOST_REGISTER_MAPPED),
        VNPU_VALUE(ACL_HOST_REG_PINNED),
        VNPU_VALUE(ACL_MEMCPY_HOST_TO_DEVICE),
        VNPU_VALUE(ACL_MEMCPY_DEVICE_TO_HOST),
        VNPU_VALUE(ACL_MEMCPY_DEVICE_TO_DEVICE),
        VNPU_VALUE(ACL_EVENT_SYNC),
        VNPU_VALUE(ACL_EVENT_CAPTURE_STREAM_PROGRESS),
        VNPU_VALUE(ACL_EVENT_TIME_LINE),
        VNPU_VALUE(ACL_EVENT_RECORDED_STATUS_NOT_READY),
        VNPU_VALUE(ACL_EVENT_RECORDED_STATUS_COMPLETE),
    };
}

}  // namespace

Layouts layouts() {
    Layouts all = of_cuda();
    for (auto& entry : of_ascend()) {
        all.push_back(std::move(entry));
    }
    return all;
}

}  // namespace vnpu
