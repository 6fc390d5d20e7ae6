#include "entry.h"

#include <array>
#include <string>

const char* const simulator::vendor_name = "cuda";

// VA cuMemAddressReserve: the address is a hint; cuMemMap: no access before cuMemSetAccess. Own and imported handles may
// lie side by side, and a descriptor may be imported anywhere and as often as one likes.
const simulator::Rules simulator::vendor_rules{false, false, false, false, false};

namespace cuda {

std::atomic<bool> initialised = false;
thread_local std::vector<CUcontext> contexts;

namespace {

struct Named {
    CUresult code;
    const char* name;
    const char* text;
};

#define NAMED(code, text) Named{code, #code, text}
constexpr std::array names{
    NAMED(CUDA_SUCCESS, "no error"),
    NAMED(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    NAMED(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    NAMED(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    NAMED(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    NAMED(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    NAMED(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    NAMED(CUDA_ERROR_OPERATING_SYSTEM, "OS call failed or operation not supported on this OS"),
    NAMED(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    NAMED(CUDA_ERROR_NOT_READY, "device not ready"),
    NAMED(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    NAMED(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "part or all of the requested memory range is already mapped"),
    NAMED(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "pointer does not correspond to a registered memory region"),
    NAMED(CUDA_ERROR_NOT_PERMITTED, "operation not permitted"),
    NAMED(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    NAMED(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    NAMED(CUDA_ERROR_UNKNOWN, "unknown error"),
};
#undef NAMED

const Named* find(CUresult code) {
    for (const Named& one : names) {
        if (one.code == code) {
            return &one;
        }
    }
    return nullptr;
}

char primary[simulator::max_devices];  // their addresses are the contexts

}  // namespace

CUresult translate(Fault fault) {
    switch (fault) {
        case Fault::none: return CUDA_SUCCESS;
        case Fault::out_of_memory: return CUDA_ERROR_OUT_OF_MEMORY;
        case Fault::invalid_handle: return CUDA_ERROR_INVALID_HANDLE;
        case Fault::invalid_device: return CUDA_ERROR_INVALID_DEVICE;
        case Fault::not_permitted: return CUDA_ERROR_NOT_PERMITTED;
        case Fault::already: return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
        case Fault::not_registered: return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
        case Fault::illegal_address: return CUDA_ERROR_ILLEGAL_ADDRESS;
        case Fault::out_of_streams: return CUDA_ERROR_OUT_OF_MEMORY;
        case Fault::timeout: return CUDA_ERROR_NOT_READY;
        case Fault::system: return CUDA_ERROR_OPERATING_SYSTEM;
        case Fault::invalid_value:
        case Fault::refused_below:
        case Fault::not_supported: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_ERROR_UNKNOWN;
}

bool known_device(Process& self, int device) {
    return self.card.locked([&](simulator::Book& book) { return device >= 0 && device < book.devices; });
}

CUcontext context_of(int device) { return reinterpret_cast<CUcontext>(&primary[device]); }

int current_device() { return static_cast<int>(reinterpret_cast<char*>(contexts.back()) - primary); }

}  // namespace cuda

using namespace cuda;

extern "C" {

CUresult cuInit(unsigned int flags) {
    CALL(nothing, {
        initialised = initialised || flags == 0;
        return flags == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

CUresult cuGetErrorName(CUresult error, const char** text) {
    const Named* const named = find(error);
    *text = named != nullptr ? named->name : nullptr;
    return named != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
    const Named* const named = find(error);
    *text = named != nullptr ? named->text : nullptr;
    return named != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDriverGetVersion(int* version) {
    *version = CUDA_VERSION;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
    CALL(initialised, {
        *count = self.card.locked([](simulator::Book& book) { return static_cast<int>(book.devices); });
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    CALL(initialised, {
        *device = ordinal;
        return known_device(self, ordinal) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
    });
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
    CALL(initialised, {
        *value = attribute == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED ||
                 attribute == CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED;
        return known_device(self, device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
    });
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    CALL(initialised, {
        if (!known_device(self, device)) {
            return CUDA_ERROR_INVALID_DEVICE;
        }
        *context = context_of(device);
        return CUDA_SUCCESS;
    });
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    CALL(initialised, { return known_device(self, device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE; });
}

CUresult cuCtxPushCurrent(CUcontext context) {
    CALL(initialised, {
        if (context == nullptr) {
            return CUDA_ERROR_INVALID_CONTEXT;
        }
        contexts.push_back(context);
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxPopCurrent(CUcontext* context) {
    CALL(context, {
        if (context != nullptr) {
            *context = contexts.back();
        }
        contexts.pop_back();
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxSetCurrent(CUcontext context) {
    CALL(initialised, {
        if (!contexts.empty()) {
            contexts.pop_back();
        }
        if (context != nullptr) {
            contexts.push_back(context);
        }
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxGetCurrent(CUcontext* context) {
    CALL(initialised, {
        *context = contexts.empty() ? nullptr : contexts.back();
        return CUDA_SUCCESS;
    });
}

}  // extern "C"
