// The one interface behind which device memory lives: physical chunks, reserved addresses, and the mapping of one to
// the other. `host` implements it here; `ascend` and `cuda` implement it over libraries opened at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace vnpu {

using Address = std::uint64_t;
using Handle = std::uint64_t;     // a chunk as this driver object knows it; never 0, never used twice
using Shareable = std::uint64_t;  // what crosses to another process: a descriptor on host and cuda

// A driver refused a call or the system below it failed. The driver's state is what it was before the call.
class DriverError : public std::runtime_error {
   public:
    DriverError(std::string call, std::int64_t code, std::string name, const std::string& message, std::string remedy);

    std::string call;   // what was called, e.g. "map"
    std::int64_t code;  // the system's error number
    std::string name;   // that number's name
    std::string remedy;
};

// A DriverError that carries an errno.
DriverError errno_error(std::string call, int error, const std::string& message, std::string remedy);

struct Placement {
    Address va;
    Handle handle;
};

// Bytes and counts that one driver object holds.
struct DriverStats {
    std::size_t own_bytes = 0;
    std::size_t imported_bytes = 0;
    std::size_t mapped_bytes = 0;
    std::size_t huge_bytes = 0;  // of own_bytes, measured after populating
    std::size_t handles = 0;
    std::size_t reservations = 0;
};

// Thread-safe. Every verb either has its whole effect or throws DriverError and has none. The rules are Ascend's
// (CANN: aclrtMapMem, aclrtReserveMemAddress, aclrtMemExportToShareableHandle), see book.h, so that code which passes
// on one driver does not fail on another.
class Driver {
   public:
    Driver() = default;
    Driver(const Driver&) = delete;
    Driver& operator=(const Driver&) = delete;
    // Closes descriptors. Never unmaps what is mapped: a pointer into it may outlive this object.
    virtual ~Driver() = default;

    virtual std::string_view name() const = 0;
    virtual std::string_view backing() const = 0;
    virtual int device() const = 0;
    virtual bool huge() const = 0;
    virtual std::size_t granularity() const = 0;

    // Address of `size` inaccessible bytes, exactly at `hint` (a multiple of 1 GiB) unless that is 0.
    virtual Address reserve(std::size_t size, Address hint) = 0;
    virtual void release(Address va) = 0;

    // A new physical chunk, populated and zero.
    virtual Handle create(std::size_t size) = 0;
    virtual void destroy(Handle handle) = 0;

    // Once per handle; a descriptor given here is the caller's to close.
    virtual Shareable export_handle(Handle handle) = 0;
    // Does not take the shareable over.
    virtual Handle import_handle(Shareable shareable, std::size_t size) = 0;

    virtual void map_many(std::span<const Placement> placements) = 0;
    virtual void unmap_many(std::span<const Address> vas) = 0;
    void map(Address va, Handle handle);
    void unmap(Address va);

    // What `create` may still take.
    virtual std::size_t free_bytes() const = 0;
    virtual DriverStats stats() const = 0;
};

struct DriverOptions {
    std::size_t limit = 0;        // bytes that own chunks may take together; 0: no limit of our own
    std::string backing = "auto";  // host: auto, tmpfs, memfd, or a folder's path
};

std::unique_ptr<Driver> open_driver(std::string_view name, int device, const DriverOptions& options);

}  // namespace vnpu
