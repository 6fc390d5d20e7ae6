// Memory that is mapped ("VA"): see entry.h for what the page names are.
#include <unistd.h>

#include "entry.h"

using namespace cuda;

namespace {

constexpr std::size_t page = 4096;

CUresult check_prop(Process& self, const CUmemAllocationProp* prop) {
    if (prop == nullptr || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED || prop->win32HandleMetaData != nullptr ||
        prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if ((prop->requestedHandleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != 0) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    return known_device(self, prop->location.id) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

}  // namespace

extern "C" {

CUresult cuMemGetInfo(size_t* free, size_t* total) {
    CALL(context, {
        self.card.locked([&](simulator::Book& book) {
            *total = book.capacity;
            const std::uint64_t used = self.card.used(current_device());
            *free = used < book.capacity ? book.capacity - used : 0;
        });
        return CUDA_SUCCESS;
    });
}

CUresult cuMemGetAllocationGranularity(size_t* granularity, const CUmemAllocationProp* prop,
                                       CUmemAllocationGranularity_flags option) {
    CALL(initialised, {
        if (option != CU_MEM_ALLOC_GRANULARITY_MINIMUM && option != CU_MEM_ALLOC_GRANULARITY_RECOMMENDED) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        *granularity = simulator::granule;
        return check_prop(self, prop);
    });
}

// VA: size and address are multiples of the host's page, the alignment a power of two or 0, the address a hint.
CUresult cuMemAddressReserve(CUdeviceptr* out, size_t size, size_t alignment, CUdeviceptr hint,
                             unsigned long long flags) {
    CALL(initialised, {
        if (flags != 0 || size % page != 0 || hint % page != 0 || (alignment & (alignment - 1)) != 0) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        simulator::Address base = 0;
        const Result result = self.space.reserve(size, alignment, hint, &base);
        *out = base;
        return translate(result.fault);
    });
}

// VA: the size must match what was reserved.
CUresult cuMemAddressFree(CUdeviceptr base, size_t size) {
    CALL(initialised, { return translate(self.space.unreserve(base, size).fault); });
}

// VA: the size is a multiple of the granularity.
CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t size, const CUmemAllocationProp* prop,
                     unsigned long long flags) {
    CALL(initialised, {
        if (flags != 0 || size % simulator::granule != 0) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        if (const CUresult known = check_prop(self, prop); known != CUDA_SUCCESS) {
            return known;
        }
        std::uint64_t name = 0;
        const bool exportable = (prop->requestedHandleTypes & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != 0;
        const Result result = self.space.create(size, prop->location.id, exportable, &name);
        *handle = name;
        return translate(result.fault);
    });
}

// VA: freed when everything is unmapped and every handle and descriptor, here and elsewhere, is given back.
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    CALL(initialised, {
        return self.space.release(handle).ok() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

// VA: offset 0, multiples of the granularity, only where nothing is mapped. That a part of a chunk is refused is
// stricter than the page, which lets a mapping be shorter.
CUresult cuMemMap(CUdeviceptr at, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
    CALL(initialised, {
        if (flags != 0) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        return self.space.map(at, size, offset, handle).ok() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

// VA: the range is the entire range of mappings; a part of one is refused.
CUresult cuMemUnmap(CUdeviceptr at, size_t size) {
    CALL(initialised, { return translate(self.space.unmap_whole(at, size).fault); });
}

// VA: the range is fully mapped.
CUresult cuMemSetAccess(CUdeviceptr at, size_t size, const CUmemAccessDesc* desc, size_t count) {
    CALL(initialised, {
        if (desc == nullptr || count != 1 || desc->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        if (!known_device(self, desc->location.id)) {
            return CUDA_ERROR_INVALID_DEVICE;
        }
        const bool readable = desc->flags != CU_MEM_ACCESS_FLAGS_PROT_NONE;
        const bool writable = desc->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        return translate(self.space.set_access(at, size, readable, writable).fault);
    });
}

// VA cuMemCreate, CUmemAllocationProp: only what was created for it is exported.
CUresult cuMemExportToShareableHandle(void* out, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type,
                                      unsigned long long flags) {
    CALL(initialised, {
        if (out == nullptr || flags != 0) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
            return CUDA_ERROR_NOT_SUPPORTED;
        }
        return translate(self.space.export_descriptor(handle, static_cast<int*>(out)).fault);
    });
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* handle, void* os_handle,
                                        CUmemAllocationHandleType type) {
    CALL(initialised, {
        if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
            return CUDA_ERROR_NOT_SUPPORTED;
        }
        std::uint64_t name = 0;
        const Result result = self.space.import_descriptor(static_cast<int>(number(os_handle)), &name);
        *handle = name;
        return translate(result.fault);
    });
}

}  // extern "C"
