// Devices, and memory that is mapped: see entry.h for what the chapter numbers are.
#include <unistd.h>

#include <set>
#include <string>

#include "entry.h"

using namespace ascend;

namespace {

constexpr simulator::Address hint_low = simulator::Address{16} << 40;   // 11-04 aclrtReserveMemAddress: 16T to 24T
constexpr simulator::Address hint_high = simulator::Address{24} << 40;
constexpr std::size_t gib = std::size_t{1} << 30;

// The pid on the bare host. It differs from getpid here, as it does in a container: who takes getpid is found out.
std::int32_t bare_pid() { return ::getpid() + 5'000'000; }

Result check_prop(Process& self, const aclrtPhysicalMemProp* prop) {
    static const std::set<int> of_device{ACL_HBM_MEM_HUGE,       ACL_HBM_MEM_NORMAL,   ACL_HBM_MEM_P2P_HUGE,
                                         ACL_HBM_MEM_P2P_NORMAL, ACL_MEM_NORMAL,       ACL_MEM_HUGE,
                                         ACL_HBM_MEM_HUGE1G,     ACL_MEM_P2P_NORMAL,   ACL_MEM_P2P_HUGE,
                                         ACL_MEM_HUGE1G};
    if (prop == nullptr || prop->handleType != ACL_MEM_HANDLE_TYPE_NONE ||
        prop->allocationType != ACL_MEM_ALLOCATION_TYPE_PINNED || prop->reserve != 0 ||
        prop->location.type != ACL_MEM_LOCATION_TYPE_DEVICE || !of_device.contains(prop->memAttr)) {
        return refuse(Fault::invalid_value, "a property that is not supported (25-04 aclrtPhysicalMemProp)");
    }
    if (!known_device(self, static_cast<int>(prop->location.id))) {
        return refuse(Fault::invalid_device, "no such device");
    }
    return {};
}

Result check_hint(simulator::Address hint, std::size_t size) {
    std::size_t alignment = size > gib ? gib : 4096;
    while (size <= gib && alignment < size && alignment < gib) {
        alignment *= 2;
    }
    if (hint != 0 && (hint < hint_low || hint + size > hint_high || hint % alignment != 0)) {
        return refuse(Fault::invalid_value, "the expected address is not in 16T to 24T, or not aligned");
    }
    return {};
}

}  // namespace

extern "C" {

aclError aclInit(const char*) {
    int code = 0;
    if (simulator::ordered_to_fail(__func__, &code)) {
        return code;
    }
    if (simulator::process() == nullptr) {
        return ACL_ERROR_RT_NO_DEVICE;
    }
    return initialised.exchange(true) ? ACL_ERROR_REPEAT_INITIALIZE : ACL_SUCCESS;  // 02 aclInit: may be ignored
}

aclError aclFinalize() { CALL(false, { initialised = false; return {}; }); }

const char* aclGetRecentErrMsg() {  // 13: of the thread, and once
    static thread_local std::string last;
    last = std::move(message);
    message.clear();
    return last.empty() ? nullptr : last.c_str();
}

aclError aclrtGetDeviceCount(uint32_t* count) {
    CALL(false, {
        *count = self.card.locked([](simulator::Book& book) { return static_cast<uint32_t>(book.devices); });
        return {};
    });
}

aclError aclrtSetDevice(int32_t device) {
    CALL(false, {
        if (!known_device(self, device)) {
            return refuse(Fault::invalid_device, "no such device");
        }
        current_device = device;
        return {};
    });
}

aclError aclrtGetDevice(int32_t* device) {
    CALL(true, {
        *device = current_device;
        return {};
    });
}

aclError aclrtResetDevice(int32_t) {
    CALL(true, {
        current_device = -1;
        return {};
    });
}

aclError aclrtDeviceGetBareTgid(int32_t* pid) {  // 04: the pid on the physical machine
    CALL(true, {
        *pid = bare_pid();
        return {};
    });
}

aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) {
    CALL(true, {
        self.card.locked([&](simulator::Book& book) {
            *total = book.capacity;
            const std::uint64_t used = self.card.used(current_device);
            *free = used < book.capacity ? book.capacity - used : 0;
        });
        return {};
    });
}

aclError aclrtMemGetAllocationGranularity(aclrtPhysicalMemProp* prop, aclrtMemGranularityOptions option,
                                          size_t* granularity) {
    CALL(true, {
        if (option != ACL_RT_MEM_ALLOC_GRANULARITY_MINIMUM && option != ACL_RT_MEM_ALLOC_GRANULARITY_RECOMMENDED) {
            return refuse(Fault::invalid_value, "no such option");
        }
        const bool large = prop != nullptr && prop->memAttr == ACL_HBM_MEM_HUGE1G;
        *granularity = large ? gib : simulator::granule;
        return check_prop(self, prop);
    });
}

// 11-04: alignment 0; flags 0, but older releases and torch-npu pass 1 for huge pages.
aclError aclrtReserveMemAddress(void** virPtr, size_t size, size_t alignment, void* expectPtr, uint64_t flags) {
    CALL(true, {
        if (alignment != 0 || flags > 1) {
            return refuse(Fault::invalid_value, "alignment must be 0 and flags 0 or 1");
        }
        if (const Result hint = check_hint(number(expectPtr), size); !hint.ok()) {
            return hint;
        }
        simulator::Address base = 0;
        const Result result = self.space.reserve(size, 0, number(expectPtr), &base);
        *virPtr = handle(base);
        return result;
    });
}

aclError aclrtReleaseMemAddress(void* virPtr) {  // 11-04: unmapped first
    CALL(true, { return self.space.unreserve(number(virPtr), std::nullopt); });
}

aclError aclrtMallocPhysical(aclrtDrvMemHandle* out, size_t size, const aclrtPhysicalMemProp* prop, uint64_t flags) {
    CALL(true, {
        if (flags != 0) {
            return refuse(Fault::invalid_value, "flags must be 0");
        }
        if (const Result known = check_prop(self, prop); !known.ok()) {
            return known;
        }
        std::uint64_t name = 0;
        const Result result = self.space.create(size, static_cast<int>(prop->location.id), false, &name);
        *out = handle(name);
        return result;
    });
}

aclError aclrtFreePhysical(aclrtDrvMemHandle gone) {  // 11-04: while mapped nothing is freed yet
    CALL(true, { return self.space.release(number(gone)); });
}

aclError aclrtMapMem(void* virPtr, size_t size, size_t offset, aclrtDrvMemHandle placed, uint64_t flags) {
    CALL(true, {
        if (flags != 0) {
            return refuse(Fault::invalid_value, "flags must be 0");
        }
        return self.space.map(number(virPtr), size, offset, number(placed));
    });
}

aclError aclrtUnmapMem(void* virPtr) {
    CALL(true, { return self.space.unmap(number(virPtr)); });
}

aclError aclrtMemSetAccess(void* virPtr, size_t size, aclrtMemAccessDesc* desc, size_t count) {
    CALL(true, {
        if (desc == nullptr || count != 1 || desc->location.type != ACL_MEM_LOCATION_TYPE_DEVICE ||
            !known_device(self, static_cast<int>(desc->location.id))) {
            return refuse(Fault::invalid_value, "one description, of a device");
        }
        const bool readable = desc->flags != ACL_RT_MEM_ACCESS_FLAGS_NONE;
        const bool writable = desc->flags == ACL_RT_MEM_ACCESS_FLAGS_READWRITE;
        return self.space.set_access(number(virPtr), size, readable, writable);
    });
}

aclError aclrtMemExportToShareableHandle(aclrtDrvMemHandle out, aclrtMemHandleType type, uint64_t flags,
                                         uint64_t* shareable) {
    CALL(true, {
        if (type != ACL_MEM_HANDLE_TYPE_NONE || flags > ACL_RT_VMM_EXPORT_FLAG_DISABLE_PID_VALIDATION) {
            return refuse(Fault::invalid_value, "handle type NONE and flags 0 or 1");
        }
        return self.space.export_number(number(out), flags == ACL_RT_VMM_EXPORT_FLAG_DISABLE_PID_VALIDATION,
                                        shareable);
    });
}

aclError aclrtMemSetPidToShareableHandle(uint64_t shareable, int32_t* pid, size_t pidNum) {
    CALL(true, {
        if (pid == nullptr) {
            return refuse(Fault::invalid_value, "no pids");
        }
        return self.space.allow(shareable, {pid, pidNum});
    });
}

aclError aclrtMemImportFromShareableHandle(uint64_t shareable, int32_t device, aclrtDrvMemHandle* out) {
    CALL(true, {
        if (!known_device(self, device)) {
            return refuse(Fault::invalid_device, "no such device");
        }
        std::uint64_t name = 0;
        const Result result = self.space.import_number(shareable, device, bare_pid(), &name);
        *out = handle(name);
        return result;
    });
}

}  // extern "C"
