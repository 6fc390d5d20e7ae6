// The one interface behind which device memory lives: physical chunks, reserved addresses, and the mapping of one to
// the other. `host` implements it here; `ascend` and `cuda` implement it over libraries opened at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "error.h"
#include "ordered_copy.h"
#include "streams.h"

namespace vnpu {

using Handle = std::uint64_t;     // a chunk as this driver object knows it; never 0, never used twice
using Shareable = std::uint64_t;  // what crosses to another process: see Sharing

// How a chunk crosses to another process: as a file descriptor (host, cuda), or as a 64-bit number that only processes
// on its white-list can import (ascend).
enum class Sharing { descriptor, handle };

struct Placement {
    Address va;
    Handle handle;
    bool writable = true;
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
    // Makes own chunks zero again. Where one of them fails, those before it are zero already.
    virtual void wipe(std::span<const Handle> handles) = 0;

    virtual Sharing sharing() const = 0;
    // How this process is named to an exporter's `permit`.
    virtual std::int32_t share_id() const = 0;
    // These processes may import an exported chunk from now on. Nothing to do where descriptors are shared.
    virtual void permit(Handle handle, std::span<const std::int32_t> share_ids) = 0;

    // Once per handle; a descriptor given here is the caller's to close.
    virtual Shareable export_handle(Handle handle) = 0;
    // Does not take the shareable over.
    virtual Handle import_handle(Shareable shareable, std::size_t size) = 0;

    virtual void map_many(std::span<const Placement> placements) = 0;
    virtual void unmap_many(std::span<const Address> vas) = 0;
    void map(Address va, Handle handle, bool writable);
    void unmap(Address va);

    // Host memory that a device copies from and to at full speed; whole pages, freed by `unpin`.
    virtual Address pin(std::size_t size) = 0;
    virtual void unpin(Address base) = 0;
    // The same for memory that is there already.
    virtual void register_host(Address base, std::size_t size) = 0;
    virtual void unregister_host(Address base) = 0;

    // Copies in order, and points in that order.
    virtual Streams& streams() = 0;
    // A long copy with progress. `options` are for drivers that copy by threads of this process.
    virtual std::unique_ptr<OrderedCopy> start_copy(std::vector<CopyEntry> entries, CopyKind kind,
                                                    const CopyOptions& options) = 0;

    // What `create` may still take.
    virtual std::size_t free_bytes() const = 0;
    virtual DriverStats stats() const = 0;
};

struct DriverOptions {
    std::size_t limit = 0;        // bytes that own chunks may take together; 0: no limit of our own
    std::string backing = "auto";  // host: auto, tmpfs, memfd, or a folder's path
    std::string library;           // ascend, cuda: path of the vendor's library; empty: environment, then its SONAME
};

std::unique_ptr<Driver> open_driver(std::string_view name, int device, const DriverOptions& options);

}  // namespace vnpu
