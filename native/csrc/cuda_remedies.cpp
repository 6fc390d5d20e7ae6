#include <algorithm>
#include <iterator>

#include "remedies.h"

namespace vnpu {

namespace {

constexpr const char* out_of_memory =
    "other processes hold the device's memory (nvidia-smi); end them, or lower this device's capacity";
constexpr const char* lost =
    "the device has failed for this process: end it and start again; if it fails again, reset the device "
    "(nvidia-smi --gpu-reset) and see the kernel log for Xid errors";
constexpr const char* mismatch = "install matching driver versions: reboot after a driver update, or rebuild the image";
constexpr const char* bug = "a mistake of vNPU's: report it with this message";

// https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TYPES.html (CUresult), by code.
constexpr Remedy table[] = {
    {1, "CUDA_ERROR_INVALID_VALUE", "see that addresses and sizes are multiples of the driver's granularity and that "
                                    "what is passed is still there"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", out_of_memory},
    {3, "CUDA_ERROR_NOT_INITIALIZED", bug},
    {4, "CUDA_ERROR_DEINITIALIZED", "the process is ending: use no driver in exit handlers"},
    {34, "CUDA_ERROR_STUB_LIBRARY", "the toolkit's stub was opened: put the driver's libcuda.so.1 before it in "
                                    "LD_LIBRARY_PATH"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "another process has the device in exclusive mode: nvidia-smi -c 0"},
    {100, "CUDA_ERROR_NO_DEVICE", "give the process a device: CUDA_VISIBLE_DEVICES, docker --gpus, /dev/nvidia*"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "number devices from 0 among those of CUDA_VISIBLE_DEVICES"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "was the process forked after CUDA began? start workers with spawn"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", lost},
    {220, "CUDA_ERROR_NVLINK_UNCORRECTABLE", lost},
    {304, "CUDA_ERROR_OPERATING_SYSTEM", "see ulimit -n, ulimit -l and the kernel log"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "see that the handle's owner has not ended, and that its descriptor is of CUDA"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "something used memory that is not mapped; the process cannot use the device "
                                        "any more: end it"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", lost},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "somebody else registered that memory: unregister it first"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "register it first"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", lost},
    {800, "CUDA_ERROR_NOT_PERMITTED", "let the process have the device and raise ulimit -l"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "this device or its virtualisation has no virtual memory management or no "
                                      "shareable handles: use a whole GPU or a MIG slice"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY", "start nvidia-fabricmanager"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", mismatch},
    {804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", mismatch},
    {805, "CUDA_ERROR_MPS_CONNECTION_FAILED", "start the MPS daemon or unset CUDA_MPS_PIPE_DIRECTORY"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "do not move memory while a CUDA graph is captured"},
    {999, "CUDA_ERROR_UNKNOWN", lost},
};

}  // namespace

const Remedy* cuda_remedy(std::int64_t code) {
    const auto* const found = std::find_if(std::begin(table), std::end(table),
                                           [code](const Remedy& each) { return each.code == code; });
    return found == std::end(table) ? nullptr : found;
}

}  // namespace vnpu
